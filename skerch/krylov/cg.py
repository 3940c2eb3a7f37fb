"""Linear systems of a damped curvature by preconditioned conjugate gradients.

Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems", J. Res. Natl.
Bur. Stand. 49(6), 1952; Saad, "Iterative methods for sparse linear systems", 2003, section 9.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from skerch.errors import ShapeError, SkerchError
from skerch.krylov.backend import LinAlgBackend
from skerch.krylov.operand import Operand
from skerch.krylov.results import CGResult
from skerch.linops.arrays import as_tensor
from skerch.measurements.measure import NonFiniteError

DRIFT = 1.001  # times the residual of the recurrence; a true one above it starts a new recurrence
PROGRESS = 0.5  # to which the true residual falls from one check to the next, or its column ends


def conjugate_gradients(
    operator: Any,
    B: Any,
    *,
    damping: float = 0.0,
    preconditioner: Any = None,
    tol: float = 1e-6,
    max_products: int | None = None,
    x0: Any = None,
    callback: Callable[[Tensor], None] | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> CGResult:
    """X with (A + δ I) X = B, for a symmetric A and a damping δ with A + δ I positive definite.

    operator: A (n, n): a `LinearOperator`, a matrix, or an operator of SciPy or curvlinops.
    B: (n,), or (n, q) for q systems. Each has its own step sizes; one iteration multiplies A by the
        block of all that have not ended. At most ten blocks (n, q) are in memory.
    damping: δ ≥ 0.
    preconditioner: a symmetric positive definite operator (n, n), near (A + δ I)⁻¹ or a multiple of
        it. The inverse itself solves a system in one step.
    tol: a column b has converged once ‖b - (A + δ I) x‖ ≤ tol ‖b‖, which a product of A with x
        checks. Where rounding has left more than the recurrence says, the iteration starts again
        from x, until a check finds no less than half of what the one before has found.
    max_products: at most so many for each column, of which the last is the check; 10 n by default.
    x0: where to start, of B's shape; 0 by default.
    callback: is called after each iteration, with the relative residuals (q,).

    Scalars are float64, vectors of the operator's dtype or, where that is less, float32. Rounding
    leaves a relative residual of about eps ‖A + δ I‖ ‖x‖ / ‖b‖, at most eps times the condition
    number. So in float32, where eps is 1e-7, a tol below 1e-7 (λ_max + δ) / (λ_min + δ) may be out
    of reach, as `converged` then says.

    Raises ShapeError for shapes that do not fit, NonFiniteError, and SkerchError where A + δ I or
    the preconditioner turns out not to be positive definite.
    """
    A = Operand(operator, "conjugate_gradients", backend)
    most = 10 * A.size if max_products is None else max_products
    if not 0 <= damping < math.inf:
        raise SkerchError(f"damping={damping} must be a finite number, 0 or above.")
    if most < 2:
        raise SkerchError(f"max_products={most} must be at least 2: a step and its check.")
    M = None if preconditioner is None else Operand(preconditioner, "A preconditioner", A.backend)
    if M and M.size != A.size:
        raise ShapeError(
            f"The preconditioner is of shape {M.operator.shape}; it must be {A.operator.shape}."
        )
    given, whole = right_hand_sides(B, A), as_tensor(B).shape
    start = None if x0 is None else right_hand_sides(x0, A, "x0")
    if start is not None and start.shape != given.shape:
        raise ShapeError(f"x0 has the shape {tuple(as_tensor(x0).shape)}; B has {tuple(whole)}.")
    history = []
    with A.frozen(), M.frozen() if M else nullcontext():
        systems = Systems(A, damping, M, given, start)
        for left in range(most, 0, -1):
            if not bool(systems.runs.any()):
                break
            systems.iterate(tol, is_last=left <= 2)
            history.append(systems.residuals)
            if callback:
                callback(systems.residuals)
    shape = whole[1:]
    return CGResult(
        systems.X.T.reshape(whole),
        systems.residuals.reshape(shape),
        len(history),
        (systems.residuals <= tol).reshape(shape),
        A.products,
        torch.cat([systems.residuals.new_empty(0), *history]).reshape(len(history), *shape),
    )


class Systems:
    """(A + δ I) x = b for each column of B (n, q); iterates are the rows of tensors (q, n)."""

    def __init__(self, A: Operand, damping: float, M: Operand | None, B: Tensor, x0: Tensor | None):
        self.A, self.damping, self.M, self.B = A, damping, M, B
        norms = A.backend.dots(B, B).sqrt()
        self.runs = norms > 0  # x = 0 solves the others
        self.scale = torch.where(self.runs, norms, 1.0)
        self.residuals = norms / self.scale  # relative to ‖b‖; by the recurrence, until checked
        self.checked = torch.full_like(norms, math.inf)  # what the last check has found
        self.norm = torch.zeros_like(norms)  # of A + δ I, by the directions so far
        self.at_check = self.runs & (x0 is not None)  # whose next product is with x
        self.R = B.T.clone(memory_format=torch.contiguous_format)  # residuals b - (A + δ I) x
        self.X, self.P = torch.zeros_like(self.R), torch.zeros_like(self.R)  # with directions P
        if x0 is not None:
            self.X[self.runs] = x0.T[self.runs]
        self.rz = torch.full_like(norms, math.inf)  # rᵀMr; infinite where a recurrence starts
        self._direct()

    def iterate(self, tol: float, is_last: bool) -> None:
        """A step for each column that runs, or the check of its solution; one block product.

        With `is_last`, the product after this one is the last.
        """
        dots = self.A.backend.dots
        steps = torch.nonzero(self.runs & ~self.at_check)[:, 0]
        checks = torch.nonzero(self.runs & self.at_check)[:, 0]
        D = torch.cat([self.P[steps], self.X[checks]])
        Y = torch.add(self.A(D.T).T, D, alpha=self.damping, out=torch.empty_like(D))
        curvature, squares = positive(self.A, self.damping, D[: len(steps)].T, Y[: len(steps)].T)
        alphas = self.rz[steps] / curvature
        for i, alpha, p, y in zip(steps, alphas.tolist(), D, Y, strict=False):
            self.X[i].add_(p, alpha=alpha)
            self.R[i].sub_(y, alpha=alpha)
        for i, y in zip(checks, Y[len(steps) :], strict=True):
            torch.sub(self.B[:, i], y, out=self.R[i])
        expected = self.residuals[checks]
        self.residuals = dots(self.R.T, self.R.T).sqrt() / self.scale

        found = self.residuals[checks]
        drifted = found > DRIFT * expected
        is_done = (found <= tol) | (drifted & (found > PROGRESS * self.checked[checks])) | is_last
        self.runs[checks], self.checked[checks] = ~is_done, found
        self.rz[checks[drifted]] = math.inf
        self.norm[steps] = self.norm[steps].maximum(curvature / squares)
        rounding = self.A.eps * self.norm * dots(self.X.T, self.X.T).sqrt() / self.scale
        self.at_check[steps] = (self.residuals <= rounding.clamp(min=tol))[steps] | is_last
        self.at_check[checks] = False
        self._direct()

    def _direct(self) -> None:
        """The next direction of each column that is to take a step."""
        go = torch.nonzero(self.runs & ~self.at_check)[:, 0]
        R = self.R[go]
        Z = self.M(R.T).to(R).T if self.M else R
        rz = self.A.backend.dots(R.T, Z.T)
        for value in rz[rz <= 0].tolist():
            raise SkerchError(
                f"The preconditioner is not positive definite: rᵀMr = {value:.3g} for a residual "
                "r. If it is an approximate inverse, give it a larger damping."
            )
        for i, beta, z in zip(go, (rz / self.rz[go]).tolist(), Z, strict=True):
            self.P[i].mul_(beta).add_(z)
        self.rz[go] = rz


def positive(A: Operand, damping: float, P: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """pᵀ(A + δ I)p for columns p and their products y, refused unless positive, and pᵀp."""
    curvature, squares = A.backend.dots(P, Y), A.backend.dots(P, P)
    for value in (curvature / squares)[curvature <= 0].tolist():
        raise SkerchError(
            f"{A.operator!r} + {damping:.3g} I is not positive definite: it has the curvature "
            f"pᵀ(A + δ I)p / pᵀp = {value:.3g} in a direction p. Take a damping above "
            f"{damping - value:.3g} (lanczos, which='SA', finds the least), or a curvature without "
            "negative eigenvalues: a GGN or a Fisher matrix."
        )
    return curvature, squares


def right_hand_sides(B: Any, A: Operand, name: str = "B") -> Tensor:
    """An argument of shape (n,) or (n, q) as the columns (n, q) that A multiplies."""
    given = as_tensor(B).to(A.like)
    if given.ndim not in (1, 2) or len(given) != A.local_size:
        raise ShapeError(
            f"{name} has the shape {tuple(given.shape)}; it must be ({A.local_size},) or "
            f"({A.local_size}, q)."
        )
    block = given if given.ndim == 2 else given[:, None]
    for column in torch.nonzero(~A.backend.dots(block, block).isfinite())[:, 0].tolist():
        raise NonFiniteError(f"Column {column} of {name} is not finite.")
    return block
