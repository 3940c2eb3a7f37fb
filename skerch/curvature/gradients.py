"""Gradients of a loss over the selected parameters: of its mean, and of single examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skerch.curvature.batching import split_batch, to_device
from skerch.curvature.operator import LossCurvature
from skerch.errors import ShapeError


def mean_gradient(op: LossCurvature, data: Any, batch_size: int | None = None) -> Tensor:
    """The gradient (N,) of an operator's mean loss on other data, one batch after the other."""
    data = to_device(data, op.device, op.precision)
    total, whole = torch.zeros(op.shape[0], dtype=op.dtype, device=op.device), 0.0
    for batch in split_batch(data, batch_size) if batch_size else [data]:
        weight = op.batch_weight(batch)
        total += weight * _gradient(op, batch)
        whole += weight
    return total / whole


def example_gradients(op: LossCurvature, data: Any, numbers: Sequence[int] | None = None) -> Tensor:
    """The gradients (N, q) of an operator's loss at examples of data, by number; all for None.

    An example is a batch of one. Raises ShapeError for a number that there is not.
    """
    examples = split_batch(to_device(data, op.device, op.precision), 1)
    numbers = range(len(examples)) if numbers is None else numbers
    if not all(0 <= number < len(examples) for number in numbers):
        raise ShapeError(
            f"There is no example {max(numbers)}; there are {len(examples)}, from 0 on."
        )
    return torch.stack([_gradient(op, examples[number]) for number in numbers], dim=1)


def _gradient(op: LossCurvature, batch: Any) -> Tensor:
    """The gradient (N,) of the loss of a batch; zero where a parameter has no part in it."""
    _, found = op.restricted(batch).gradients()
    parts = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(op.params.values(), found, strict=True)
    ]
    return torch.cat([part.detach().flatten() for part in parts]).to(op.dtype)
