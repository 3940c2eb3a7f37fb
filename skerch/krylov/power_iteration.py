"""Eigenpairs of largest magnitude by power iteration, with momentum and deflation.

With momentum β the iteration is v_{t+1} ∝ A v_t - β v_{t-1}, which is fastest for β = λ_2² / 4 (Xu,
He, De Sa, Mitliagkas and Ré, "Accelerated stochastic power iteration", AISTATS 2018). Values and
residuals come from A v_t alone, so that β does not bias them. `lanczos` needs fewer products.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from skerch.errors import ShapeError, SkerchError
from skerch.krylov.backend import LinAlgBackend
from skerch.krylov.basis import rotate
from skerch.krylov.lanczos import check_count
from skerch.krylov.operand import Operand
from skerch.krylov.results import EigenResult


def power_iteration_one(
    operator: Any,
    *,
    max_iter: int = 100,
    tol: float = 1e-4,
    momentum: float = 0.0,
    init: Tensor | None = None,
    seed: int | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> tuple[float, Tensor, float, int, bool]:
    """The eigenpair of largest magnitude: (λ, v, ‖A v - λ v‖, iterations, converged).

    It has converged once ‖A v - λ v‖ ≤ tol |λ|. The start is `init` (n,), or random of this seed;
    None takes a fresh one.
    """
    A = Operand(operator, "power_iteration_one", backend)
    if init is None:
        init = A.randn([0], A.backend.seed(seed), "krylov")[:, 0]
    if init.shape != (A.local_size,):
        raise ShapeError(f"init has the shape {tuple(init.shape)}; it must be ({A.local_size},).")
    if not 0 < (norm := float(A.backend.norm(init))) < math.inf:
        raise SkerchError(f"init has the norm {norm}; it must be a vector with a direction.")
    with A.frozen():
        return iterate(A, init.to(A.like), init.new_empty(A.local_size, 0), max_iter, tol, momentum)


def deflated_power_iteration(
    operator: Any,
    *,
    k: int = 10,
    max_iter: int = 100,
    tol: float = 1e-4,
    momentum: float = 0.0,
    seed: int | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> EigenResult:
    """The k eigenpairs of largest magnitude, each by at most `max_iter` power iterations.

    Each vector is kept orthogonal to those before. Residuals are ‖A v - λ v‖ of the operator
    itself: they hold the errors of the vectors before, and a pair whose residual cannot fall to
    tol |λ| for that reason has not converged.
    """
    A = Operand(operator, "deflated_power_iteration", backend)
    check_count(k, A.size)
    seed = A.backend.seed(seed)
    vectors = A.like.new_empty(k, A.local_size)
    values, residuals = torch.zeros(2, k, dtype=torch.float64, device="cpu")
    converged = torch.zeros(k, dtype=torch.bool, device="cpu")
    iterations = 0
    with A.frozen():
        for i in range(k):
            start = A.randn([i], seed, "krylov")[:, 0]
            found = iterate(A, start, vectors[:i].T, max_iter, tol, momentum)
            values[i], vectors[i], residuals[i], steps, converged[i] = found
            iterations += steps
    order = values.abs().argsort(descending=True)
    rotate(vectors, torch.eye(k, dtype=torch.float64, device="cpu")[:, order], vectors)
    values, residuals = values[order].to(A.like), residuals[order].to(A.like)
    done = converged[order].to(A.device)
    return EigenResult(values, vectors, residuals, iterations, done, A.products)


def iterate(
    A: Operand, v: Tensor, Q: Tensor, max_iter: int, tol: float, momentum: float
) -> tuple[float, Tensor, float, int, bool]:
    """Power iteration from v, orthogonal to the columns of Q (n, j)."""
    if max_iter < 1:
        raise SkerchError(f"max_iter={max_iter} must be at least 1.")

    def outside(X: Tensor) -> Tensor:
        return torch.addmm(X, Q.to(X), A.backend.inner(Q, X).to(X), alpha=-1)

    V = outside(outside(v[:, None]))
    V = V / float(A.backend.norm(V))
    before = torch.zeros_like(V)
    for iterations in range(1, max_iter + 1):
        W = A(V)
        value = float(A.backend.dots(V, W))
        residual = float(A.backend.norm(W - value * V))
        W = outside(W)
        part = float(A.backend.norm(W - value * V))  # which further iterations reduce
        bound = max(tol * abs(value), 2 * A.eps * float(A.backend.norm(W)))
        if part <= bound or iterations == max_iter:
            break
        W = outside(W - momentum * before)
        norm = float(A.backend.norm(W))
        before, V = V / norm, W / norm
    return value, V[:, 0], residual, iterations, residual <= bound
