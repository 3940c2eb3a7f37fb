"""Losses of batches (x, y) of inputs and targets."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from skerch.curvature.losses.batches import BatchWeight, LossFn
from skerch.curvature.losses.closed_forms import Criterion, CrossEntropy, closed_form
from skerch.curvature.losses.outputs import Loss, LossOfOutput, LossOfOutputFn
from skerch.errors import SkerchError


def supervised_loss(criterion: Criterion) -> Loss:
    """The loss criterion(model(x), y) of a batch (x, y); `criterion` takes a mean.

    Of torch's cross-entropy (with or without logits' sigmoid) and squared error it knows the closed
    forms and what their means divide by, which is then the weight of a batch.
    """
    return Loss(supervised_forward, supervised_loss_of_output(criterion))


def supervised_forward(model: Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The output model(x) of a batch (x, y)."""
    output: Tensor = model(batch[0])
    return output


def supervised_loss_of_output(criterion: Criterion) -> LossOfOutputFn:
    """The loss criterion(output, y) of a batch (x, y), with `hvp` where that is known."""
    closed = closed_form(criterion)
    if closed is None:
        return lambda output, batch: criterion(output, batch[1])
    return LossOfOutput(criterion, closed, _second)


def cross_entropy_loss_of_output() -> LossOfOutput:
    """The mean cross-entropy of logits (n, classes, …) and the labels y of a batch (x, y)."""
    return _known(F.cross_entropy)


def mse_loss_of_output() -> LossOfOutput:
    """The mean squared error of outputs and the targets y of a batch (x, y)."""
    return _known(F.mse_loss)


def supervised_per_sample_loss(criterion: Criterion) -> LossFn:
    """The loss criterion(model(x), y) of one sample (x, y), which the model sees as a batch."""

    def per_sample_loss_fn(model: Module, sample: tuple[Tensor, Tensor]) -> Tensor:
        x, y = sample
        return criterion(model(x[None])[0], y)

    return per_sample_loss_fn


def _known(criterion: Criterion) -> LossOfOutput:
    loss = supervised_loss_of_output(criterion)
    assert isinstance(loss, LossOfOutput)
    return loss


def _second(batch: tuple[Tensor, Tensor]) -> Tensor:
    return batch[1]


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
        return CrossEntropy(class_weights, ignore_index).divisor(y)

    return batch_weight
