"""The sketched singular value decomposition of a general operator, in core."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from skerch import sketch_operators
from skerch.a_posteriori import residuals
from skerch.errors import SkerchError
from skerch.linops.base import LinearOperator
from skerch.sketch_operators.base import SketchOperator


@dataclass(frozen=True)
class SvdResult:
    """Singular triplets of an operator (m, n), sorted by decreasing σ: A ≈ U diag(σ) Vᵀ."""

    left: Tensor  # (m, k), orthonormal columns
    values: Tensor  # (k,), float64
    right: Tensor  # (n, k), orthonormal columns
    residual: Tensor  # (k + 1,) estimated ‖A - A_r‖_F for r = 0 … k


def ssvd(
    op: LinearOperator,
    *,
    outer: int,
    inner: int | None = None,
    sketch: str = "sparse_sign",
    probes: int = 30,
    seed: int = 0,
    block_size: int = 64,
) -> SvdResult:
    """The `outer` largest singular triplets of an operator (m, n) that has an adjoint.

    With sketch operators Ω (s, n) and Ψ (s, m), s = `inner` (default: 2 `outer`), and k = outer:

        A Ω₁ᵀ = Q R,    Aᵀ Ψ₁ᵀ = P T    (the first k rows of Ω and Ψ),
        C = (ΨQ)⁺ (Ψ A Ωᵀ) ((ΩP)⁺)ᵀ,    A ≈ Q C Pᵀ

    (Tropp, Yurtsever, Udell and Cevher, SISC 41(4), 2019, section 2), for s products with A, k with
    Aᵀ, and `probes` with A for the error estimate. Raises SkerchError for sizes that do not fit.
    """
    rows, columns = op.shape
    inner = min(2 * outer, *op.shape) if inner is None else inner
    if not 1 <= outer <= inner <= min(op.shape) or probes < 2:
        raise SkerchError(
            f"ssvd of an operator of shape {op.shape} needs 1 ≤ outer ≤ inner ≤ {min(op.shape)} "
            f"and at least 2 probes, not outer={outer}, inner={inner}, probes={probes}."
        )

    def make(kind: str, role: str, shape: tuple[int, int]) -> SketchOperator:
        return sketch_operators.make(
            kind, shape, seed=seed, role=role, dtype=op.dtype, device=op.device
        )

    def blocks(end: int) -> Iterator[tuple[int, int]]:
        return ((i, min(i + block_size, end)) for i in range(0, end, block_size))

    omega, psi = make(sketch, "omega", (inner, columns)), make(sketch, "psi", (inner, rows))
    stored, core = [], []
    for start, stop in blocks(inner):
        Y = op @ omega.rows(start, stop).T
        stored.append(Y[:, : max(outer - start, 0)])
        core.append(psi @ Y)
    adjoint = op.T
    corange = [adjoint @ psi.rows(start, stop).T for start, stop in blocks(outer)]
    Q = torch.linalg.qr(torch.cat(stored, dim=1).double()).Q
    P = torch.linalg.qr(torch.cat(corange, dim=1).double()).Q

    def solve(A: Tensor, B: Tensor) -> Tensor:
        solution: Tensor = torch.linalg.lstsq(A.double(), B.double()).solution
        return solution

    half = solve(psi @ Q.to(op.dtype), torch.cat(core, dim=1))
    U, values, Vh = torch.linalg.svd(solve(omega @ P.to(op.dtype), half.T).T)
    left, right = Q @ U, P @ Vh.T

    G = make("gaussian", "probe", (probes, columns)).rows(0, probes).T * probes**0.5
    AG = (op @ G).double()
    residual = residuals(values, right.T @ G.double(), left.T @ AG, (AG**2).sum(dim=0))
    return SvdResult(left.to(op.dtype), values, right.to(op.dtype), residual)
