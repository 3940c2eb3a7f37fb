"""SkEIGH of the paper: an oversampled core sketch, solved by two least-squares problems.

Tropp, Yurtsever, Udell and Cevher, "Streaming low-rank matrix approximation with an application
to scientific simulation", SISC 41(4), 2019, section 2, for a symmetric matrix:

    Y = H Ω₁ᵀ = Q R,    C = (ΨQ)⁺ (Ψ H Ωᵀ) ((ΩQ)⁺)ᵀ,    H ≈ Q (C + Cᵀ)/2 Qᵀ.
"""

from __future__ import annotations

import torch

from skerch.decompositions.recoveries.core import Core, asymmetry, largest
from skerch.measurements.summary import Summary


def recover(summary: Summary, outer: int) -> Core:
    """Eigenpairs of the symmetrised core C; `health` has the relative asymmetry of C."""
    assert summary.inner is not None
    m = summary.stored
    left = summary.inner[:, :m] @ summary.P
    right = summary.cross[:, :m] @ summary.P
    half = torch.linalg.lstsq(left, summary.inner, driver="gelsd").solution
    C = torch.linalg.lstsq(right, half.T, driver="gelsd").solution.T
    values, U = largest(C, outer + 1)
    return Core(values, summary.P @ U, torch.ones_like(values), {"core_asymmetry": asymmetry(C)})
