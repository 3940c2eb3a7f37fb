"""Masks: which parameters a pruning by magnitude, or by chance, would keep.

A mask is the set of the first k indices of an order of all N parameters, so that masks of one
order are nested: one order answers for every k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skerch.errors import ShapeError, SkerchError
from skerch.randomness import stream


def magnitude_order(parameters: Tensor) -> Tensor:
    """Indices (N,) of the parameters (N,) by decreasing magnitude, ties by increasing index.

    Raises `ShapeError` unless the parameters are one vector, and `SkerchError` where one is not
    finite.
    """
    if parameters.ndim != 1:
        raise ShapeError(
            f"Parameters are ordered as one vector (N,), not {tuple(parameters.shape)}; "
            "flatten them first."
        )
    magnitudes = parameters.detach().cpu().abs()
    finite = magnitudes.isfinite()
    if not finite.all():
        raise SkerchError(
            f"{int((~finite).sum())} of {len(finite)} parameters are not finite, the first at "
            f"index {int((~finite).nonzero()[0])}: their magnitudes have no order. The training "
            "diverged; analyse an earlier step or lower its learning rate."
        )
    return magnitudes.argsort(descending=True, stable=True)


def magnitude_mask(parameters: Tensor, k: int) -> Tensor:
    """Indices (k,) of the k largest parameters (N,) by magnitude, the largest first.

    Raises `SkerchError` unless 0 <= k <= N, and as `magnitude_order` does.
    """
    order = magnitude_order(parameters)
    if not 0 <= k <= len(order):
        raise SkerchError(f"A mask of {len(order)} parameters holds 0 to {len(order)}, not {k}.")
    return order[:k]


def ties(parameters: Tensor, mask: Tensor) -> Tensor:
    """How many parameters have the least magnitude in mask_j: within it, and in all, (2, k).

    mask_j is the first j = 1 … k of a magnitude mask (k,) of the parameters (N,). Where the first
    number is the smaller one, several masks hold j largest parameters, and the indices alone have
    decided for mask_j.
    """
    magnitudes = parameters.detach().cpu().abs()
    values, group, inside = torch.unique_consecutive(
        magnitudes[mask], return_inverse=True, return_counts=True
    )
    larger = (inside.cumsum(0) - inside)[group]
    alike = inside.clone()
    alike[-1:] = torch.isin(magnitudes, values[-1:]).sum()  # others are all within the mask
    return torch.stack([torch.arange(1, len(mask) + 1, device=mask.device) - larger, alike[group]])


def random_mask(n: int, k: int, seed: int, index: int) -> Tensor:
    """Indices (k,) of k of n parameters: the uniformly random mask number `index` of a seed."""
    return torch.from_numpy(stream(seed, "synthetic", index, n).choice(n, k, replace=False))
