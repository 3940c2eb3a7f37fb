"""Eigenpairs at the ends of the spectrum by the Lanczos method, in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skerch.errors import ShapeError, SkerchError
from skerch.krylov.backend import LinAlgBackend
from skerch.krylov.basis import ROUNDINGS, rotate
from skerch.krylov.operand import BLOCK_BYTES, Operand
from skerch.krylov.results import EigenResult, LanczosTridiag
from skerch.krylov.space import ORDERS, KrylovSpace, Which

LEAST_BASIS = 20  # as ARPACK has
LOOKS = 65 / 64  # times the last basis that was looked at, before it is looked at again


def lanczos(
    operator: Any,
    *,
    k: int = 10,
    max_iter: int | None = None,
    tol: float = 1e-4,
    reorthogonalize: bool | None = None,
    which: Which = "LM",
    seed: int | None = None,
    block_size: int = 1,
    basis_size: int | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> EigenResult:
    """The k eigenpairs of largest magnitude ("LM"), largest ("LA") or smallest ("SA").

    operator: symmetric (n, n): a `LinearOperator`, a matrix, or one of SciPy or curvlinops.
    tol: a pair has converged once ‖A v - λ v‖ ≤ tol |λ|, or 2 eps ‖A‖, the products' rounding,
        where that is more. An eigenvalue of A then lies within that norm of λ, and nearer in
        general. The iteration ends when all k have, or when no further step can help as products
        are less symmetric than that.
    max_iter: at most so many iterations, of `block_size` products each; n by default.
    block_size: vectors that go through the operator together. One needs the fewest products. An
        eigenvalue of multiplicity p is found p times where blocks have p vectors or more; with
        fewer, copies come late or not at all. None appears twice that is there once.
    basis_size: vectors in memory, beside the result and a few blocks; the basis is restarted with
        its best part where it is full. By default as many as 256 MiB hold, at least
        max(2 k + 1, 20) and at most 4 k + 100.
    reorthogonalize: for callers of hessian-eigenthings; all vectors are always orthogonalised.
    seed: of the start; None takes a fresh one.

    `residuals` are ‖A v - λ v‖ of the original A, from the recurrence, which is exact to rounding
    (see `skerch.krylov.space`), at no further product; that rounding, eps ‖A‖, is added.

    Raises ShapeError for an operator that is not square, SkerchError for one that is not symmetric
    or not declared so, and for sizes that do not fit.
    """
    if which not in ORDERS:
        raise SkerchError(f"which={which!r} is unknown; there are {', '.join(ORDERS)}.")
    A = Operand(operator, "lanczos", backend, block_size=block_size)
    check_count(k, A.size)
    most = _most_iterations(max_iter, k, block_size, A.size)
    basis = _basis(basis_size, k, block_size, most, A)
    space = KrylovSpace(A, basis + block_size, block_size, A.backend.seed(seed))
    looked = 0
    with A.frozen():
        for iterations in range(1, most + 1):
            space.expand()
            is_full = space.size + space.width > basis
            is_last = iterations == most or space.is_closed
            if not is_full and not is_last and space.size < max(k, LOOKS * looked):
                continue
            pairs, looked = space.ritz(which), space.size
            beyond, inside = pairs.beyond[:k], pairs.inside[:k]
            rounding = A.eps * float(pairs.values.abs().max())
            residuals = (beyond**2 + inside**2 + rounding**2).sqrt()
            converged = residuals <= (tol * pairs.values[:k].abs()).clamp(min=2 * rounding)
            is_done = len(beyond) == k and bool((converged | (beyond < inside)).all())
            if is_last or is_done:
                break
            if is_full:
                space.restart(pairs.coefficients[:, : (basis - block_size + k) // 2])
                looked = 0
    vectors = A.like.new_empty(k, A.local_size)
    rotate(space.basis.rows[: space.size], pairs.coefficients[:, :k], vectors)
    values = pairs.values[:k].to(A.like)
    residuals, converged = residuals.to(A.like), converged.to(A.device)
    return EigenResult(values, vectors, residuals, iterations, converged, A.products)


def lanczos_tridiagonal(
    operator: Any,
    v0: Tensor,
    max_iter: int,
    *,
    reorthogonalize: bool = True,
    backend: LinAlgBackend[Tensor] | None = None,
) -> LanczosTridiag:
    """The tridiagonal matrix and the basis of `max_iter` Lanczos steps from v0 (n,).

    It has fewer where v0's Krylov space is smaller. Without `reorthogonalize` copies of eigenvalues
    appear once some have converged.

    Raises ShapeError for a v0 of another shape, SkerchError for one that is 0.
    """
    A = Operand(operator, "lanczos_tridiagonal", backend)
    if v0.shape != (A.local_size,):
        raise ShapeError(f"v0 has the shape {tuple(v0.shape)}; it must be ({A.local_size},).")
    if max_iter < 1:
        raise SkerchError(f"max_iter={max_iter} must be at least 1.")
    v = v0.to(A.like)
    if not 0 < (norm := float(A.backend.norm(v))) < math.inf:
        raise SkerchError(f"v0 has the norm {norm}; it must be a vector with a direction.")
    basis: list[Tensor] = []
    with A.frozen():
        start = v[:, None] / norm
        alphas, betas = recurrence(A, start, max_iter, A, basis, reorthogonalize)
    m = len(basis)
    alphas, betas = alphas[0].to(A.like), betas[0].to(A.like)
    return LanczosTridiag(alphas[:m], betas[: m - 1], basis, float(betas[m - 1]), m)


def recurrence(
    A: Operand,
    V: Tensor,
    steps: int,
    product: Callable[[Tensor], Tensor],
    basis: list[Tensor] | None = None,
    reorthogonalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """α and β, each (b, steps), of Lanczos recurrences from b unit vectors V (n, b), together.

    Where a vector's Krylov space is exhausted after m steps, β_m and all later ones are 0. Steps
    end where all are. To a `basis`, the vectors of b = 1 are appended.
    """
    dots, shape = A.backend.dots, (V.shape[1], steps)
    alphas = torch.zeros(shape, dtype=torch.float64, device="cpu")
    betas = torch.zeros_like(alphas)
    before = torch.zeros_like(V)
    for step in range(steps):
        if basis is not None:
            basis.append(V[:, 0])
        W = product(V)
        alphas[:, step] = alpha = dots(V, W)
        scale = dots(W, W).sqrt()
        W = torch.addcmul(W, V, alpha.to(W), value=-1)  # a new one, as the product may be V itself
        W.addcmul_(before, betas[:, step - 1].to(W), value=-1)
        for q in (basis or []) * 2 if reorthogonalize else []:
            W -= q[:, None] * dots(q[:, None], W).to(W)
        beta = dots(W, W).sqrt()
        beta = torch.where(
            beta > ROUNDINGS * A.eps * scale.maximum(alphas.abs().amax(1)), beta, 0.0
        )
        betas[:, step] = beta
        if not bool(beta.any()):
            break
        before, V = V, W.mul_(torch.where(beta > 0, 1 / beta, 0.0).to(W))
    return alphas, betas


def check_count(k: int, size: int) -> None:
    """Refuse a number of pairs that an operator of this size does not have."""
    if k < 1:
        raise SkerchError(f"k must be at least 1, not {k}.")
    if k > size:
        raise SkerchError(f"k={k} exceeds operator size {size}.")


def _most_iterations(max_iter: int | None, k: int, block_size: int, size: int) -> int:
    """The bound on iterations, refused where it leaves no k pairs or exceeds the size."""
    if max_iter is None:
        return size
    if max_iter > size:
        raise SkerchError(f"max_iter={max_iter} exceeds operator size {size}.")
    if max_iter * block_size < k:
        raise SkerchError(
            f"max_iter={max_iter} iterations with block_size={block_size} give "
            f"{max_iter * block_size} vectors; k={k} pairs need at least as many."
        )
    return max_iter


def _basis(basis_size: int | None, k: int, block_size: int, most: int, A: Operand) -> int:
    """How many vectors the basis has."""
    least = min(k + 2 * block_size, A.size)
    if basis_size is None:
        held = min(BLOCK_BYTES // (A.size * A.dtype.itemsize), 4 * k + 100)
        basis_size = max(held, 2 * k + 1, LEAST_BASIS, least)
    elif basis_size < least:
        raise SkerchError(
            f"basis_size={basis_size} is too small for k={k} and block_size={block_size}; it must "
            f"be at least {least}."
        )
    return min(basis_size, A.size, most * block_size)
