"""The inverse of a damped curvature from its eigenpairs, and preconditioners deflated by them.

Tang, Nabben, Vuik and Erlangga, "Comparison of two-level preconditioners derived from deflation,
domain decomposition and multigrid methods", J. Sci. Comput. 39, 2009: with eigenvectors, what is
here is their balancing preconditioner.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from skerch.decompositions.seigh import EighResult, symmetric
from skerch.errors import ShapeError, SkerchError
from skerch.krylov.operand import eigenpairs
from skerch.linops.base import LinearOperator


class DeflatedInverse(LinearOperator):
    """X ↦ W (Λ + δ I)⁻¹ Wᵀ X + P M P X, P = I - W Wᵀ, for eigenpairs Λ (k,), W (n, k) of A (n, n).

    On the span of W it is the inverse of A + δ I. On the complement it is M, an approximate
    inverse: 1 / (μ + δ) with the mean μ of the other eigenvalues, (tr A - Σ λ) / (n - k), by
    default, or an operator, such as the inverse of Kronecker factors at the same δ. It is symmetric
    positive definite if M is: a preconditioner for `conjugate_gradients`, which then needs as many
    products as the rest of the spectrum asks for.

    pairs: a result of `seigh`, `lanczos` or `deflated_power_iteration`, or eigenvalues (k,) and
        eigenvectors (n, k), orthonormal columns.
    trace: of A; by default that of a result of `seigh`. Where there is none, and where a mean would
        be negative, μ is 0.
    complement: M, symmetric (n, n), in place of 1 / (μ + δ).
    power: -1, or -1/2 for the inverse square root W (Λ + δ I)^-½ Wᵀ + P (μ + δ)^-½; a given M is
        taken as it is.
    absolute: take |λ| for negative λ, so that it is the inverse of |A| + δ I: a descent direction
        of a Hessian. Without, a λ ≤ -δ is refused.

    Raises ShapeError for shapes that do not fit, and SkerchError where λ + δ or μ + δ is not
    positive.
    """

    self_adjoint = True

    def __init__(
        self,
        pairs: Any,
        damping: float,
        *,
        trace: float | None = None,
        complement: Any = None,
        power: float = -1.0,
        absolute: bool = False,
    ):
        values, self.vectors = eigenpairs(pairs, "pairs")
        n, k = self.vectors.shape
        super().__init__((n, n), self.vectors.dtype, self.vectors.device)
        if not 0 <= damping < math.inf:
            raise SkerchError(f"damping={damping} must be a finite number, 0 or above.")
        if trace is None and isinstance(pairs, EighResult):
            trace = pairs.trace.value
        rest = 0.0 if trace is None else max(0.0, (trace - float(values.sum())) / max(1, n - k))
        values = values.abs() if absolute else values
        if bool((values + damping <= 0).any()):
            raise SkerchError(
                f"The eigenvalue {float(values.min()):.3g} with damping={damping:.3g} has no "
                "positive inverse: take a larger damping, absolute=True for that of |A|, or a "
                "curvature without negative eigenvalues, a GGN or a Fisher matrix."
            )
        self.scales = ((values + damping) ** power).to(self.vectors)
        self.complement: LinearOperator | float
        if complement is not None:
            self.complement = symmetric(complement, "A complement")
            if self.complement.shape != self.shape:
                raise ShapeError(
                    f"complement is of shape {self.complement.shape}; it must be {self.shape}."
                )
        elif rest + damping > 0:
            self.complement = (rest + damping) ** power
        else:
            raise SkerchError(
                "damping=0 leaves no inverse of what is not in the eigenpairs; give a positive "
                "one, or the trace or an approximate inverse of the rest (trace, complement)."
            )

    def frozen(self) -> AbstractContextManager[None]:
        M = self.complement
        return M.frozen() if isinstance(M, LinearOperator) else nullcontext()

    def _matmul(self, X: Tensor) -> Tensor:
        W = self.vectors
        C = W.T @ X
        rest = X - W @ C
        if isinstance(self.complement, LinearOperator):
            rest = (self.complement @ rest.to(self.complement.dtype)).to(X)
            rest -= W @ (W.T @ rest)
        else:
            rest *= self.complement
        return rest.addmm_(W, self.scales[:, None] * C)
