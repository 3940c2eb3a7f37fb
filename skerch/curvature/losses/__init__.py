"""Losses: of batches, of a network's outputs, and their closed forms."""

from skerch.curvature.losses.batches import (
    BatchWeight,
    LossFn,
    batch_loss,
    differentiating,
    run,
    weighted,
)
from skerch.curvature.losses.language_models import (
    hf_lm_forward,
    hf_lm_loss,
    hf_lm_loss_of_output,
    hf_seq2seq_loss,
    tlens_forward,
    tlens_loss,
    tlens_loss_of_output,
)
from skerch.curvature.losses.outputs import (
    ForwardFn,
    Loss,
    LossOfOutput,
    LossOfOutputFn,
    OutputProduct,
    by_autograd,
    in_two_steps,
    outer_products,
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
    "LossOfOutput",
    "LossOfOutputFn",
    "OutputProduct",
    "batch_loss",
    "by_autograd",
    "cross_entropy_loss_of_output",
    "differentiating",
    "hf_lm_forward",
    "hf_lm_loss",
    "hf_lm_loss_of_output",
    "hf_seq2seq_loss",
    "in_two_steps",
    "label_weight",
    "mse_loss_of_output",
    "outer_products",
    "run",
    "supervised_forward",
    "supervised_loss",
    "supervised_loss_of_output",
    "supervised_per_sample_loss",
    "tlens_forward",
    "tlens_loss",
    "tlens_loss_of_output",
    "weighted",
]
