"""Rayleigh-Ritz on the range of one round of measurements, as a reference.

Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53(2), 2011, section
5.3: Y₁ = H Ωᵀ = Q R, then C = QᵀHQ and H ≈ Q C Qᵀ. Half of the matvecs find Q, half measure HQ.
"""

from __future__ import annotations

import torch

from skerch.decompositions.recoveries.core import Core, asymmetry, largest
from skerch.measurements.summary import Summary


def recover(summary: Summary, outer: int) -> Core:
    """Eigenpairs of C; `health` has its relative asymmetry."""
    assert summary.range_map is not None
    first = len(summary.range_map)
    P = summary.range_map  # the columns that it may lack are zero, as their eigenvalues then are
    C = P.T @ summary.gram[:first, first : summary.stored]
    values, U = largest(C, outer + 1)
    coefficients = U.new_zeros(summary.stored, U.shape[1])
    coefficients[:first] = P @ U
    return Core(values, coefficients, torch.ones_like(values), {"asymmetry": asymmetry(C)})
