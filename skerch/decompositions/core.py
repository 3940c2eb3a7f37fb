"""From a summary to eigenpairs in the coordinates of the stored columns, with their residuals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skerch.a_posteriori import residuals
from skerch.decompositions import recovery as recoveries
from skerch.measurements.summary import Summary


@dataclass(frozen=True)
class Core:
    """What a recovery returns: eigenpairs in the coordinates of the stored columns."""

    values: Tensor  # (k,), sorted by decreasing magnitude
    coefficients: Tensor  # (m, k), the eigenvectors are Y times these
    health: dict[str, float]  # figures that tell how far to trust it; "asymmetry" of the products


@dataclass(frozen=True)
class Solution:
    """A recovery's eigenpairs with their estimated residuals."""

    eigenvalues: Tensor  # (k,)
    coefficients: Tensor  # (m, k)
    residual: Tensor  # (k + 1,) estimated ‖H - H_r‖_F for r = 0 … k
    health: dict[str, float]


def solve(summary: Summary, recovery: str, outer: int) -> Solution:
    """The `outer` eigenpairs of largest magnitude by a recovery, and their residuals.

    Eigenvalues below the columns' rounding, eps |λ_1|, are left out.

    With W = Y B the eigenvectors, the estimate for each rank needs a = WᵀZ = Bᵀ XᵀHZ and
    c = WᵀHZ = Bᵀ YᵀHZ only (see `skerch.a_posteriori.residuals`).
    """
    core = recoveries.load(recovery)(summary, outer)
    resolved = core.values.abs() > summary.epsilon * core.values[:1].abs()
    values, B, m = core.values[resolved], core.coefficients[:, resolved], summary.stored
    residual = residuals(
        values,
        B.T @ summary.probe_products,
        B.T @ summary.gram[:m, m:],
        torch.diagonal(summary.gram)[m:],
    )
    return Solution(values, B, residual, core.health)


def largest(C: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` eigenpairs of largest magnitude of a small symmetric matrix, sorted."""
    values, vectors = torch.linalg.eigh((C + C.T).div_(2))
    order = values.abs().argsort(descending=True, stable=True)[:count]
    return values[order], vectors[:, order]


def asymmetry(C: Tensor) -> float:
    """‖C - Cᵀ‖_F / ‖C‖_F, zero for C = 0."""
    norm = float(torch.linalg.norm(C))
    return float(torch.linalg.norm(C - C.T)) / norm if norm > 0 else 0.0
