"""What all recoveries share: their result, and the algebra of small symmetric matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Core:
    """Eigenpairs in the coordinates of the stored columns, as a recovery returns them.

    The last one, where there are so many, is beyond those asked for: it tells how far others reach.
    """

    values: Tensor  # (k,), sorted by decreasing magnitude
    coefficients: Tensor  # (m, k), the eigenvectors are Y times these
    unknown: Tensor  # (k,) the norm of each eigenvector's part where H is not known exactly
    health: dict[str, float]  # figures that tell how far to trust it; "asymmetry" of the products


def largest(C: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` eigenpairs of largest magnitude of a small symmetric matrix, sorted."""
    values, vectors = torch.linalg.eigh((C + C.T).div_(2))
    order = values.abs().argsort(descending=True, stable=True)[:count]
    return values[order], vectors[:, order]


def asymmetry(C: Tensor) -> float:
    """‖C - Cᵀ‖_F / ‖C‖_F, zero for C = 0."""
    norm = float(torch.linalg.norm(C))
    return float(torch.linalg.norm(C - C.T)) / norm if norm > 0 else 0.0
