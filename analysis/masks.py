"""Masks: which parameters a pruning by magnitude, by gradient, or by chance, would keep.

A mask is the set of the first k indices of an order of all N parameters, so that masks of one
order are nested: one order answers for every k. A mask that is given is one set for all k.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def layer_order(parameters: Tensor, sizes: Sequence[int]) -> Tensor:
    """Indices (N,) by decreasing magnitude in each layer, such that layers lose alike.

    The layers are parts of the parameters (N,) of so many each. The first k indices are the largest
    k n / N of a layer's n parameters, but for rounding: the j-th largest comes at (j - 1/2) / n.
    Raises as `magnitude_order` does, and `ShapeError` where the sizes do not add up to N.
    """
    if sum(sizes) != len(parameters):
        raise ShapeError(
            f"{len(parameters)} parameters are not in layers of {sum(sizes)} altogether."
        )
    places = torch.empty(len(parameters), dtype=torch.float64, device="cpu")
    parts = (torch.split(vector, list(sizes)) for vector in (parameters, places))
    for part, place in zip(*parts, strict=True):
        ranks = torch.arange(len(part), dtype=torch.float64, device="cpu")
        place[magnitude_order(part)] = (ranks + 0.5) / max(1, len(part))
    return places.argsort(stable=True)


def given_mask(values: Tensor, N: int) -> Tensor:
    """Indices (m,) of a mask of N parameters, from 0 and 1 for each, or from indices themselves.

    Raises `SkerchError` where the values are neither, or select nothing.
    """
    values = values.reshape(-1)
    if len(values) == N and ((values == 0) | (values == 1)).all():
        found = values.nonzero()[:, 0]
    elif values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise SkerchError(
            f"A mask is 0 or 1 for each of {N} parameters, or whole numbers; these are "
            f"{len(values)} values of {values.dtype}."
        )
    else:
        found = torch.unique(values.long())
        if len(found) < len(values) or not ((found >= 0) & (found < N)).all():
            raise SkerchError(
                f"A mask's indices are different ones from 0 to {N - 1}; these {len(values)} are "
                f"{len(found)} different ones from {int(found[0])} to {int(found[-1])}."
            )
    if not len(found):
        raise SkerchError("A mask without parameters has no overlap.")
    return found


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
