"""What inverses at a damping make of eigenvalues: λ and δ ↦ m, whose inverse is taken."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from skerch.kronecker.eigenbasis import Basis

Spectral = Callable[[Tensor, float], Tensor]


def damped(values: Tensor, damping: float) -> Tensor:
    """λ + δ."""
    return values + damping


def pseudo(values: Tensor, damping: float) -> Tensor:
    """λ where it is above δ, and infinity elsewhere."""
    return torch.where(values > damping, values, math.inf)


def tikhonov(values: Tensor, damping: float) -> Tensor:
    """λ + δ² / λ."""
    return values + damping**2 / values


def factored(S: Basis, A: Basis, damping: float) -> Tensor:
    """(l_S + √δ/π) (l_A + π√δ), of shape (groups, R_O, R_I)."""
    pi = ((A.trace / A.size) / (S.trace / S.size)).sqrt()
    pi = torch.where(pi.isfinite() & (pi > 0), pi, 1.0)[:, None]
    root = math.sqrt(damping)
    return (S.values + root / pi)[..., :, None] * (A.values + root * pi)[..., None, :]


KINDS: dict[str, Spectral] = {
    "damped": damped,
    "pseudo": pseudo,
    "tikhonov": tikhonov,
    "factored": damped,  # of eigenvalues that are not those of factors
}
