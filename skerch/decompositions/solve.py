"""From a summary to eigenpairs in the coordinates of the stored columns, with their residuals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skerch.a_posteriori import (
    eigenvalue_bounds,
    interval,
    norm,
    pair_bounds,
    pair_residuals,
    residuals,
    trace,
)
from skerch.decompositions import recoveries
from skerch.estimate import Estimate
from skerch.measurements.summary import Summary

LEAST_ROUNDING = 1e-11  # of the eigenvectors' orthogonality, relative to |λ_1|


@dataclass(frozen=True)
class Solution:
    """A recovery's eigenpairs with their estimated residuals."""

    eigenvalues: Tensor  # (k,)
    coefficients: Tensor  # (m, k)
    residual: Tensor  # (k + 1,) estimated ‖H - H_r‖_F for r = 0 … k
    pair_residual: Tensor  # (k,) estimated ‖H w_i - λ_i w_i‖
    pair_bound: Tensor  # (k,) of that norm, in 95 of 100
    eigenvalue_bound: Tensor  # (k,) how far an eigenvalue of H may be from λ_i, in 95 of 100
    beyond: float  # other eigenvalues than these are taken to lie within ± this
    trace: Estimate | None  # of H; None where the probes' gᵀHg are not known
    norm: Estimate  # ‖H‖_F
    health: dict[str, float]


def solve(summary: Summary, recovery: str, outer: int) -> Solution:
    """The `outer` eigenpairs of largest magnitude by a recovery, and their residuals.

    Eigenvalues below the columns' rounding, eps |λ_1|, are left out.

    With W = Y B the eigenvectors, the estimate for each rank needs a = WᵀZ = Bᵀ XᵀHZ and
    c = WᵀHZ = Bᵀ YᵀHZ only (see `skerch.a_posteriori.residuals`).
    """
    core = recoveries.load(recovery)(summary, outer)
    resolved = core.values.abs() > summary.epsilon * core.values[:1].abs()
    B, m = core.coefficients[:, resolved], summary.stored
    a, c = B.T @ summary.column_probes, B.T @ summary.gram[:m, m:]
    every, B, unknown = core.values[resolved], B[:, :outer], core.unknown[resolved][:outer]
    values, products, q = every[:outer], summary.gram[m:, m:], summary.probes
    pair_residual = pair_residuals(every, a, c)
    relative = LEAST_ROUNDING + 10 * summary.epsilon
    rounding, of_sums = (relative * float(part.abs().sum()) for part in (every[:1], values))
    rho = pair_bounds(pair_residual, q, rounding)
    a, c = a[:outer], c[:outer]
    residual = residuals(values, a, c, torch.diagonal(products))
    known = summary.quadratic
    return Solution(
        values,
        B,
        residual,
        pair_residual[:outer],
        rho[:outer],
        eigenvalue_bounds(values, rho[:outer], unknown, rounding),
        _beyond(every, rho, outer, float(interval(values, residual, q)[1][-1])),
        None if known is None else trace(values, a, known, residual, of_sums),
        norm(values, a, products, residual, of_sums),
        core.health,
    )


def _beyond(every: Tensor, rho: Tensor, outer: int, error: float) -> float:
    """What other eigenvalues than the `outer` first are taken to lie within, ±.

    It is the next one, as far as it may be, or the last where none is next; and ‖H - H_k‖.
    """
    reach = (every.abs() + rho)[outer:] if len(every) > outer else every[-1:].abs()
    return float(min([error, *reach.tolist()]))
