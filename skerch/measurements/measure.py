"""What a worker computes: one block of columns, and their sketches, from matvecs with H."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from skerch import sketch_operators
from skerch.errors import SkerchError
from skerch.linops.base import LinearOperator
from skerch.measurements.gram import slabs
from skerch.measurements.manifest import Block, Manifest
from skerch.sketch_operators.base import SketchOperator

Columns = Callable[[int, int], Tensor]


class NonFiniteError(SkerchError):
    """A measured column with a NaN or an infinity."""


class Measurer:
    """Measures the blocks of one manifest; the sketch operators are made once.

    The test vectors ω_i are the rows of Ω, or in a later round the columns of the range Q. With
    y_i = H ω_i, a block holds those that apply of:

    - `leftouter` (N, b): y_i;
    - `cross` (s, b): Ω y_i, for stored columns and probes of a round whose test vectors are Ω's;
    - `inner` (s, b): Ψ y_i;
    - `norm` (b,): ‖ω_i‖;
    - `probe` (N, b): H g_i, for standard Gaussian g_i, and `quadratic` (b,): g_iᵀH g_i;
    - `start` (s, b): Q₁ᵀ g_i, where the first round's test vectors are the columns of a start Q₁.

    `range_columns(start, stop)` gives the columns [start, stop) of Q as an (N, b) tensor.
    """

    def __init__(
        self,
        manifest: Manifest,
        device: torch.device | str = "cpu",
        range_columns: Columns | None = None,
    ):
        self.manifest = manifest
        self.dtype = getattr(torch, manifest.dtype)
        self.device = device
        self.range_columns = range_columns

        def sketch(kind: str, role: str, rows: int) -> SketchOperator:
            return sketch_operators.make(
                kind, (rows, manifest.size), seed=manifest.seed, role=role,
                dtype=self.dtype, device=device,
            )  # fmt: skip

        kind, columns = manifest.sketch, manifest.columns
        self.omega = sketch(kind, "omega", columns) if range_columns is None else None
        self.psi = sketch(kind, "psi", columns) if manifest.compresses else None
        self.probes = sketch("gaussian", "probe", max(manifest.probes, 1))

    def test_vectors(self, block: Block) -> Tensor:
        """The (N, b) vectors that a block multiplies."""
        if block.kind == "probe":
            return self.probes.rows(block.start, block.stop).T * math.sqrt(self.manifest.probes)
        if self.omega is not None:
            return self.omega.rows(block.start, block.stop).T
        assert self.range_columns is not None
        return self.range_columns(block.start, block.stop).to(self.device)

    def measure(self, op: LinearOperator, block: Block) -> dict[str, Tensor]:
        """The arrays of a block; raises NonFiniteError, which names the column."""
        X = self.test_vectors(block)
        Y = (op @ X).detach()
        if not torch.isfinite(Y.sum()):  # one pass; a sum of finite columns may overflow
            bad = torch.nonzero(~torch.isfinite(Y).all(dim=0))
            if len(bad):
                raise NonFiniteError(
                    f"Column {block.start + int(bad[0])} ({block.kind} vector) is not finite; "
                    "nothing of its block was written."
                )
        arrays = {}
        if block.kind == "probe":
            arrays["probe"] = Y
            arrays["quadratic"] = _inner_products(X, Y)
        elif block.stored:
            arrays["leftouter"] = Y
        if self.omega is not None:
            if block.stored:
                arrays["cross"] = self.omega @ Y
            if block.kind == "test":
                arrays["norm"] = torch.linalg.vector_norm(X, dim=0)
        if self.range_columns is not None and block.kind == "probe":
            starts = range(0, self.manifest.columns, self.manifest.block_size)
            parts = [(a, min(a + self.manifest.block_size, self.manifest.columns)) for a in starts]
            Q = self.range_columns
            arrays["start"] = torch.cat([Q(*part).to(self.device).T @ X for part in parts])
        if self.psi is not None and block.kind == "test":
            arrays["inner"] = self.psi @ Y
        return arrays


def _inner_products(X: Tensor, Y: Tensor) -> Tensor:
    """x_iᵀy_i of columns, (b,), summed in float64 by slabs."""
    total = X.new_zeros(X.shape[1], dtype=torch.float64)
    for start, stop in slabs(len(X)):
        total += (X[start:stop].double() * Y[start:stop].double()).sum(dim=0)
    return total.to(Y.dtype)
