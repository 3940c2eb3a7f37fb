"""A symmetric operator as the algorithms use it: products of blocks, counted and deflated."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from skerch.decompositions.seigh import EighResult, symmetric
from skerch.errors import ShapeError, SkerchError
from skerch.krylov.backend import LinAlgBackend, SingleDeviceBackend
from skerch.krylov.results import EigenResult
from skerch.linops.arrays import as_tensor
from skerch.measurements.measure import NonFiniteError

MOST_TOGETHER = 64  # vectors in a block
BLOCK_BYTES = 2**28  # that a block of vectors may have, where one vector has fewer


class Operand:
    """X ↦ E X for blocks X (n, b) in `dtype`, where E = A - V diag(λ) Vᵀ.

    λ and V, the eigenpairs that are known, come from `deflate`: a result of `lanczos`,
    `deflated_power_iteration` or `seigh`, or eigenvalues (k,) and eigenvectors (n, k). What follows
    for A = E + V diag(λ) Vᵀ holds whatever they are; near eigenpairs, E is small.

    Operators of half precision get vectors of float32.
    """

    def __init__(
        self,
        operator: Any,
        caller: str,
        backend: LinAlgBackend[Tensor] | None = None,
        *,
        deflate: Any = None,
        block_size: int | None = None,
    ):
        self.operator = symmetric(operator, caller)
        own = getattr(self.operator, "backend", None)  # where the operator's vectors are sharded
        self.backend: LinAlgBackend[Tensor] = backend or own or SingleDeviceBackend()
        self.size = self.operator.shape[0]
        if not self.size:
            raise ShapeError(
                f"{caller} needs an operator of one row at least, not of shape (0, 0)."
            )
        self.dtype = torch.promote_types(self.operator.dtype, torch.float32)
        self.device = self.operator.device
        self.eps = torch.finfo(self.operator.dtype).eps
        self.local_size = len(self.backend.rows(self.size))
        self.like = torch.empty(0, dtype=self.dtype, device=self.device)
        self.products = 0
        if block_size is not None and block_size < 1:
            raise SkerchError(f"block_size={block_size} must be at least 1.")
        most = max(1, min(MOST_TOGETHER, BLOCK_BYTES // (self.size * self.dtype.itemsize)))
        self.block_size = block_size or most
        if deflate is None:
            deflate = self.like, self.like.new_empty(self.local_size, 0)
        self.values, self.vectors = eigenpairs(
            deflate, "deflate", self.local_size, self.dtype, self.device
        )

    def frozen(self) -> AbstractContextManager[None]:
        """A context in which products may share preparations."""
        return self.operator.frozen()

    def __call__(self, X: Tensor) -> Tensor:
        """E X, of which every column is finite."""
        Y = (self.operator @ X.to(self.operator.dtype)).detach().to(self.dtype)
        self.products += X.shape[1]
        if len(self.values):
            known = self.values[:, None] * self.backend.inner(self.vectors, X)
            Y = torch.addmm(Y, self.vectors, known.to(Y), alpha=-1)
        wrong = torch.nonzero(~self.backend.dots(Y, Y).isfinite())[:, 0]
        if len(wrong):
            number = self.products - X.shape[1] + int(wrong[0])
            raise NonFiniteError(f"Product {number} of {self.operator!r} is not finite.")
        return Y

    def randn(self, columns: Sequence[int], seed: int, role: str) -> Tensor:
        """Standard Gaussian vectors (n, b)."""
        return self.backend.randn(self.like, columns, size=self.size, seed=seed, role=role)

    def rademacher(self, columns: Sequence[int], seed: int, role: str) -> Tensor:
        """Vectors of signs (n, b)."""
        return self.backend.rademacher(self.like, columns, size=self.size, seed=seed, role=role)

    @property
    def known_trace(self) -> float:
        """tr V diag(λ) Vᵀ."""
        return float(self.values @ self.backend.dots(self.vectors, self.vectors))


def eigenpairs(
    given: Any,
    name: str,
    rows: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """λ (k,), float64 on the CPU, and V (n, k), from all that `deflate` may be.

    An error has the name of the argument.
    """
    if isinstance(given, EigenResult):
        given = given.eigenvalues, given.eigenvectors.T
    if isinstance(given, EighResult):
        given = given.eigenvalues, given.eigenvectors
    try:
        numbers, matrix = given
    except (TypeError, ValueError):
        raise SkerchError(
            f"{name} is a {type(given).__name__}; it must be (eigenvalues, eigenvectors) or the "
            "result of seigh or lanczos."
        ) from None
    values = as_tensor(numbers, torch.float64, "cpu")
    vectors = as_tensor(matrix, dtype, device)
    rows = len(vectors) if rows is None else rows
    if values.ndim != 1 or vectors.shape != (rows, len(values)):
        raise ShapeError(
            f"{name} has eigenvalues of shape {tuple(values.shape)} and eigenvectors of shape "
            f"{tuple(vectors.shape)}; they must be (k,) and ({rows}, k)."
        )
    return values, vectors
