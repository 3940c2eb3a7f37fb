"""The damping of an approximate inverse, by its error on held-out gradients.

Damping has two roles. In the system (A + δ₀ I) x = g, δ₀ is part of the question. In an approximate
inverse M_δ = (F + δ I)⁻¹ of a Kronecker-factored or otherwise approximated curvature F, δ also
covers what F lacks, and the best one for the given δ₀ is sought. (Were δ moved on both sides, an
infinite one would win: both matrices are then multiples of I.)

The measure is the error x - x* of x = M_δ g in the norm of A + δ₀ I, the one that conjugate
gradients reduce. It is the mean square error of scores hᵀx over gradients h of covariance A + δ₀ I,
and needs no solution x* = (A + δ₀ I)⁻¹ g: up to a constant, it is xᵀ(A + δ₀ I)x - 2 gᵀx, which is 0
for x = 0 and negative for a better one. The residual would weigh directions of large curvature
more, and prefers dampings that are too large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from skerch.errors import SkerchError
from skerch.krylov.backend import LinAlgBackend
from skerch.krylov.cg import positive, right_hand_sides
from skerch.krylov.operand import Operand
from skerch.krylov.results import DampingResult


def choose_damping(
    operator: Any,
    inverse: Callable[[float], Any],
    gradients: Any,
    *,
    damping: float,
    dampings: Sequence[float],
    scaled: bool = False,
    solutions: Any = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> DampingResult:
    """The δ at which M_δ g is nearest to (A + δ₀ I)⁻¹ g, in the mean over held-out gradients g.

    For x = M_δ g and x* = (A + δ₀ I)⁻¹ g the error is (‖x - x*‖² - ‖y - x*‖²) / ‖y‖², in the norm
    of A + δ₀ I. Here y is the nearest to x* of all multiples of the x for all δ. So the error is 0
    for y and 1 for 0; residuals tell how near y itself is.

    operator: A, the exact curvature: symmetric (n, n), positive semidefinite.
    inverse: δ ↦ M_δ, a symmetric positive definite operator (n, n).
    gradients: (n, q), of examples that the approximation has not seen: it is more exact for those
        it was made of. Zeros are left out.
    damping: δ₀ ≥ 0.
    dampings: δ to try, such as np.logspace(-3, 2, 11) times the mean eigenvalue tr A / n; each
        takes q products of A.
    scaled: judge the best multiple of each x instead of x, for scores whose scale does not matter.
        Without, δ serves for solutions, and for the preconditioner of `conjugate_gradients`.
    solutions: x* (n, q), where they are known. Then y is x*, and errors are ‖x - x*‖² / ‖x*‖² or,
        if scaled, 1 - r² for the correlation r of scores hᵀx with hᵀx*, over gradients h as above.

    Raises ShapeError for shapes that do not fit, and SkerchError where there is no damping, no
    gradient but zeros, or where A + δ₀ I turns out not to be positive definite.
    """
    A = Operand(operator, "choose_damping", backend)
    tried = sorted({float(each) for each in dampings})
    if not tried or not all(0 <= each < math.inf for each in [damping, *tried]):
        raise SkerchError(f"{damping=} and dampings={tried} must be finite numbers, 0 or above.")
    dots = A.backend.dots
    G = right_hand_sides(gradients, A, "gradients")
    norms = dots(G, G).sqrt()
    some = norms > 0
    if not bool(some.any()):
        raise SkerchError("All gradients are 0; give some of examples that the model has not fit.")
    G, norms = G[:, some], norms[some]
    shape = (3, len(tried), len(norms))
    linear, quadratic, residuals = torch.empty(shape, dtype=torch.float64, device="cpu")
    with A.frozen():
        for i, each in enumerate(tried):
            M = Operand(inverse(each), "The inverse", A.backend)
            X = M(G).to(G)
            Y = torch.add(A(X), X, alpha=damping)
            linear[i], quadratic[i] = dots(G, X), positive(A, damping, X, Y)[0]
            residuals[i] = dots(G - Y, G - Y).sqrt() / norms
    best_multiple = linear.square() / quadratic  # what it gains over 0, in the squared norm
    gain = best_multiple if scaled else 2 * linear - quadratic
    if solutions is None:
        most = best_multiple.amax(0)
    else:
        most = dots(G, right_hand_sides(solutions, A, "solutions")[:, some])
    errors = 1 - gain / most
    q, mean = len(norms), errors.mean(1)
    stderr = ((errors - mean[:, None]).square().sum(1) / (q - 1) / q).sqrt()  # NaN for one
    best = int(mean.argmin())
    return DampingResult(
        tried[best],
        torch.tensor(tried, dtype=torch.float64, device="cpu"),
        errors,
        residuals,
        mean,
        stderr,
        best in (0, len(tried) - 1),
        A.products,
    )
