"""The sketched singular value decomposition of a general operator, in core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skerch import sketch_operators
from skerch.a_posteriori import residuals
from skerch.errors import SkerchError
from skerch.linops.adapters import aslinearoperator
from skerch.linops.base import LinearOperator

MOST_DEFECT = 1e-3  # of an adjoint: rounding and reduced precision explain no more


@dataclass(frozen=True)
class SvdResult:
    """Singular triplets of an operator (m, n), sorted by decreasing σ: A ≈ U diag(σ) Vᵀ."""

    singular_values: Tensor  # (k,), float64
    left_vectors: Tensor  # (m, k), orthonormal columns, of the operator's dtype
    right_vectors: Tensor  # (n, k), orthonormal columns, of the operator's dtype
    residual: Tensor  # (k + 1,) estimated ‖A - A_r‖_F for r = 0 … k
    health: dict[str, float]  # "adjoint_defect": how far the products by Aᵀ are from A's


def ssvd(
    op: Any,
    *,
    outer: int,
    inner: int | None = None,
    sketch: str = "sparse_sign",
    probes: int = 30,
    seed: int = 0,
    block_size: int = 64,
) -> SvdResult:
    """The `outer` largest singular triplets of an operator (m, n) that has an adjoint.

    `op` is a `LinearOperator`, a tensor, a NumPy array, or an operator of SciPy or curvlinops.

    Spends `inner` products by A and as many by Aᵀ (default: twice `outer`, at most min(m, n)), at
    most `block_size` at a time, and `probes` more by A for the error estimate. They make ⌊inner /
    outer⌋ rounds of `outer` columns; the first has the remainder too. With P₁ a basis of Ωᵀ, for
    the `sketch` Ω, round j is a step of block Krylov iteration,

        Q_j = orth(A P_j),    P_{j+1} = orth(the top `outer` left singular vectors of Aᵀ Q_j),

    each orthogonal to all before it, and A ≈ Q (QᵀA)_k for Q = [Q₁, Q₂, …] and the measured
    QᵀA = (AᵀQ)ᵀ. This is a projection: ‖A - A_k‖² = ‖A‖² - Σ_{i≤k} σ_i² in the Frobenius norm, so
    that the σ_i are never too large and the residual never exceeds ‖A‖. Everything but the products
    is done in float64. Singular values below rounding, eps σ_1, are left out, so that fewer
    triplets come back from an A of lower rank.

    `health["adjoint_defect"]` is ‖Qᵀ(AG) - (AᵀQ)ᵀG‖_F / ‖Qᵀ(AG)‖_F for the probes G: rounding if
    the adjoint is right.

    Musco and Musco, "Randomized block Krylov methods for stronger and faster approximate singular
    value decomposition", NeurIPS 2015; Tropp and Webber, "Randomized algorithms for low-rank matrix
    approximation: Design, analysis, and applications", arXiv 2306.12418, 2023. Blocks are no
    narrower than `outer`, as a narrower one misses part of a multiple singular value.

    Raises SkerchError for sizes that do not fit, for products that are not finite, and for an
    adjoint that is not A's.
    """
    op = aslinearoperator(op)
    rows, columns = op.shape
    inner = min(2 * outer, *op.shape) if inner is None else inner
    if not 1 <= outer <= inner <= min(op.shape) or probes < 2:
        raise SkerchError(
            f"ssvd of an operator of shape {op.shape} needs 1 ≤ outer ≤ inner ≤ {min(op.shape)} "
            f"and at least 2 probes, not outer={outer}, inner={inner}, probes={probes}."
        )
    if block_size < 1:
        raise SkerchError(f"block_size={block_size} must be at least 1; 64 is usual.")

    def random(kind: str, role: str, count: int) -> Tensor:
        shape = count, columns
        options = {"seed": seed, "role": role, "dtype": op.dtype, "device": op.device}
        return sketch_operators.make(kind, shape, **options).rows(0, count).T.double()

    rounds = inner // outer
    X = random(sketch, "omega", inner - (rounds - 1) * outer)
    P, Q, AtQ = (X.new_empty(length, 0) for length in (columns, rows, columns))
    with op.frozen():
        for _ in range(rounds):
            P = _extended(P, X)
            Q = _extended(Q, _products(op, P[:, Q.shape[1] :], block_size))
            new = _products(op.T, Q[:, AtQ.shape[1] :], block_size)
            AtQ = torch.cat([AtQ, new], dim=1)
            X = torch.linalg.svd(new, full_matrices=False).U[:, :outer]
        G = random("gaussian", "probe", probes) * probes**0.5
        AG = _products(op, G, block_size)

    defect = _defect(Q.T @ AG, AtQ.T @ G)
    if defect > max(MOST_DEFECT, torch.finfo(op.dtype).eps ** 0.5):
        raise SkerchError(
            f"The adjoint of {op!r} is not its transpose: uᵀ(A v) and (Aᵀu)ᵀv differ by "
            f"{defect:.2g} of their size; correct its adjoint product, or a declared self_adjoint."
        )
    V, values, Wh = torch.linalg.svd(AtQ, full_matrices=False)
    kept = values[:outer] > torch.finfo(op.dtype).eps * values[0]
    values, right = values[:outer][kept], V[:, :outer][:, kept]
    left = Q @ Wh[:outer][kept].T
    residual = residuals(values, right.T @ G, left.T @ AG, AG.square().sum(dim=0))
    return SvdResult(
        values, left.to(op.dtype), right.to(op.dtype), residual, {"adjoint_defect": defect}
    )


def _products(op: LinearOperator, X: Tensor, block_size: int) -> Tensor:
    """A X in float64, from products in the operator's dtype."""
    blocks = [(op @ block).detach() for block in torch.split(X.to(op.dtype), block_size, dim=1)]
    Y = torch.cat(blocks, dim=1).double()
    if not torch.isfinite(Y).all():
        raise SkerchError(f"A product of {op!r} has a NaN or an infinity; look for its source.")
    return Y


def _extended(basis: Tensor, X: Tensor) -> Tensor:
    """The orthonormal basis (n, r) with as many columns more as X (n, b) has, which span it too.

    One QR of both stays orthonormal even where X adds nothing.
    """
    new = torch.linalg.qr(torch.cat([basis, X], dim=1)).Q[:, basis.shape[1] :]
    return torch.cat([basis, new], dim=1)


def _defect(left: Tensor, right: Tensor) -> float:
    """‖L - R‖_F / max(‖L‖_F, ‖R‖_F), zero if both are zero."""
    norm = max(float(torch.linalg.norm(left)), float(torch.linalg.norm(right)))
    return float(torch.linalg.norm(left - right)) / norm if norm > 0 else 0.0
