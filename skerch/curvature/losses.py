"""Losses of batches, and what their means divide by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import Module

from skerch.errors import SkerchError

LossFn = Callable[[Module, Any], Tensor]
BatchWeight = Callable[[Any], float]


def supervised_loss(criterion: Callable[[Tensor, Tensor], Tensor]) -> LossFn:
    """The loss criterion(model(x), y) of a batch (x, y); `criterion` takes a mean."""

    def loss_fn(model: Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return criterion(model(x), y)

    return loss_fn


def label_weight(
    ignore_index: int = -100, class_weights: Tensor | None = None, *, labels: int | str = 1
) -> BatchWeight:
    """What a mean cross-entropy divides by: the sum of c[y] over the labels y ≠ ignore_index.

    `class_weights` c has shape (classes,); without it the labels are counted. `labels` is where the
    batch holds its integer labels, of any shape: a position in a tuple, or a key of a dict. With
    `ignore_index` and `class_weights` those of `torch.nn.CrossEntropyLoss`, batches of any
    composition combine to the mean over all labels.
    """

    def batch_weight(batch: Any) -> float:
        y: Tensor = batch[labels]
        if y.is_floating_point():
            raise SkerchError(
                f"label_weight needs integer labels, and batch[{labels!r}] has dtype {y.dtype}; "
                "set labels= to where they are, or give a batch_weight of your own."
            )
        counted = y[y != ignore_index]
        if class_weights is None:
            return float(counted.numel())
        return float(class_weights.to(y.device)[counted].double().sum())

    return batch_weight
