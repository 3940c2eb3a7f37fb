"""From a summary to eigenpairs in the coordinates of the stored columns, with their residuals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skerch.a_posteriori import residuals
from skerch.decompositions import recoveries
from skerch.measurements.summary import Summary


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
