"""How well an approximation captures the top eigenspace of a curvature matrix.

With W (N, K) eigenvectors of the matrix H, V (N, K) those of the approximation F̂, and W_k and V_k
the first k of them,

    overlap(k) = ‖W_kᵀ V_k‖_F² / k,    k = 1 … K,

the mean squared cosine of the principal angles between the two top-k eigenspaces: 1 where they
agree, 0 where they are orthogonal, and k / N in the mean where V_k is uniformly random. Where F̂ has
equal eigenvalues at k, V_k is one choice of many.

Along w_i, F̂ has w_iᵀ F̂ w_i, and H has λ_i; and ‖F̂ W - W Λ‖_F is how far F̂ is off on W.

H W - W Λ is not 0 for eigenpairs that are sketched. The bound of `skerch.analysis.overlap` holds
for the projector on V_k in the place of a mask's. ‖(F̂ - H) W‖_F is within ‖H W - W Λ‖_F of
‖F̂ W - W Λ‖_F, and w_iᵀ H w_i within ‖H w_i - λ_i w_i‖ of λ_i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from skerch.analysis.overlap import overlap_curve, overlap_error
from skerch.errors import ShapeError
from skerch.linops.base import LinearOperator

COLUMNS = 64  # eigenvectors that are read at a time, as their files have them


class Columns(Protocol):
    """A matrix that is read by columns: a tensor, a NumPy array or an HDF5 dataset."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: tuple[slice, slice], /) -> Any: ...


@dataclass(frozen=True)
class ApproximationResult:
    """An approximation on the top eigenspace of a matrix; float64."""

    overlap: Tensor  # (K,) of the top-k eigenspaces, k = 1 … K
    overlap_error: Tensor  # (K,) how far it may be off; NaN where that is not known
    baseline: Tensor  # (K,) k / N, the mean over random spaces
    eigenvalues: Tensor  # (K,) λ_i of the matrix
    quotients: Tensor  # (K,) w_iᵀ F̂ w_i
    pair_residual: Tensor  # (K,) bounds of ‖H w_i - λ_i w_i‖; NaN likewise
    residual: Tensor  # (2,) ‖(F̂ - H) W‖_F / ‖Λ‖_F, and how far it may be off


def approximate(
    approximation: LinearOperator,
    top: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Columns,
    *,
    pair_residual: Tensor | None = None,
    sines: Tensor | None = None,
) -> ApproximationResult:
    """Compare an approximation F̂ with eigenpairs λ (K,) and W (N, K) of a matrix.

    Args:
        top: V (N, K'), the top eigenvectors of F̂, as from `KroneckerOperator.top`. Overlaps are of
            the least of K and K'.
        pair_residual: bounds (K,) of ‖H w_i - λ_i w_i‖; None where they are not known.
        sines: (K, K) as from `skerch.a_posteriori.eigenspace_sines`; None likewise.

    Raises ShapeError where the shapes do not belong together.
    """
    N, K = eigenvectors.shape
    if (len(top), len(eigenvalues)) != (N, K) or approximation.shape != (N, N):
        raise ShapeError(
            f"Eigenvectors {tuple(eigenvectors.shape)} and {tuple(top.shape)}, eigenvalues "
            f"{tuple(eigenvalues.shape)} and an approximation {tuple(approximation.shape)} are not "
            "of one matrix."
        )
    k, values = min(K, top.shape[1]), eigenvalues.double().cpu()
    V = top[:, :k].double().cpu()
    cosines, quotients, squares = V.new_zeros(k, K), values.clone(), values.clone()
    for start in range(0, K, COLUMNS):
        part = slice(start, start + COLUMNS)
        w = torch.as_tensor(eigenvectors[:, part], device="cpu").detach().double()
        product = (approximation @ w.to(approximation.device, approximation.dtype)).double().cpu()
        cosines[:, part] = V.T @ w
        quotients[part] = (w * product).sum(0)
        squares[part] = (product - w * values[part]).square().sum(0)
    index = torch.arange(1, k + 1, dtype=torch.float64, device="cpu")
    rho = torch.full_like(values, math.nan) if pair_residual is None else pair_residual.double()
    sines = V.new_full((k, k), math.nan) if sines is None else sines[:k, :k]
    off = torch.stack([squares.sum(), rho.square().sum()]).sqrt()
    return ApproximationResult(
        overlap=overlap_curve(cosines[:, :k]),
        overlap_error=overlap_error(cosines[:, :k], sines),
        baseline=index / N,
        eigenvalues=values,
        quotients=quotients,
        pair_residual=rho,
        residual=off / values.norm(),
    )
