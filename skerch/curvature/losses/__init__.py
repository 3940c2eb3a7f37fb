"""Losses: of batches, of a network's outputs, and their closed forms."""

from skerch.curvature.losses.batches import (
    BatchWeight,
    LossFn,
    batch_loss,
    differentiating,
    run,
    weighted,
)
from skerch.curvature.losses.outputs import (
    ForwardFn,
    Loss,
    LossOfOutputFn,
    OutputProduct,
    by_autograd,
    in_two_steps,
)
from skerch.curvature.losses.supervised import (
    cross_entropy_loss_of_output,
    label_weight,
    mse_loss_of_output,
    supervised_forward,
    supervised_loss,
    supervised_loss_of_output,
    supervised_per_sample_loss,
)

__all__ = [
    "BatchWeight",
    "ForwardFn",
    "Loss",
    "LossFn",
    "LossOfOutputFn",
    "OutputProduct",
    "batch_loss",
    "by_autograd",
    "cross_entropy_loss_of_output",
    "differentiating",
    "in_two_steps",
    "label_weight",
    "mse_loss_of_output",
    "run",
    "supervised_forward",
    "supervised_loss",
    "supervised_loss_of_output",
    "supervised_per_sample_loss",
    "weighted",
]
