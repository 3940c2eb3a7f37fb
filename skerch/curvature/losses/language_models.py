"""Losses of language models: the mean of -log p of each token given those before it.

Batches weigh as many tokens as they predict: after the shift by one, without those of label -100.
So padding and uneven batches are right where the labels there are -100.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from reprlib import repr as short
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from skerch.curvature.losses.closed_forms import CrossEntropy
from skerch.curvature.losses.outputs import ForwardFn, Loss, LossOfOutput
from skerch.curvature.losses.softmax_product import BACKENDS
from skerch.errors import SkerchError

IGNORED = -100
Backend = Literal["auto", "eager", "compile", "triton"]


def hf_lm_loss() -> Loss:
    """The loss of a causal language model of Hugging Face, of batches with `input_ids`, `labels`.

    It is the model's own `loss`, without a mixture of experts' penalty, in the precision of the
    logits, or in float32 if they have less. Labels are shifted here: they are the `input_ids`.
    """
    return Loss(hf_lm_forward(), hf_lm_loss_of_output())


def hf_lm_forward() -> ForwardFn:
    """The logits (n, length, tokens) of a causal language model of Hugging Face."""

    def forward(model: Module, batch: Mapping[str, Any]) -> Tensor:
        name, config = type(model).__name__, getattr(model, "config", None)
        if getattr(config, "is_encoder_decoder", False) or name.endswith("ForMaskedLM"):
            raise SkerchError(
                f"{name} predicts tokens where they stand, so its labels are not shifted; take "
                "hf_seq2seq_loss."
            )
        logits: Tensor = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        return logits

    return forward


def hf_lm_loss_of_output(*, fused: Backend = "auto") -> LossOfOutput:
    """The loss of logits and a batch's `labels`, which are shifted here.

    `fused` is how its second derivative is applied (`skerch.curvature.losses.softmax_product`).
    """
    return _of_logits(lambda batch: _next(_labels(batch)), fused)


def hf_seq2seq_loss() -> Loss:
    """The loss of a model of Hugging Face with encoder and decoder, of batches with `labels`.

    It is also that of a masked language model: labels are of the positions where they stand.
    """

    def forward(model: Module, batch: Mapping[str, Any]) -> Tensor:
        logits: Tensor = model(**batch).logits
        return logits

    return Loss(forward, _of_logits(_labels, "auto"))


def tlens_loss() -> Loss:
    """The loss of a model of TransformerLens, of tokens (n, length) or a dict with "tokens"."""
    return Loss(tlens_forward(), tlens_loss_of_output())


def tlens_forward() -> ForwardFn:
    """The logits (n, length, tokens) of a model of TransformerLens."""

    def forward(model: Module, batch: Any) -> Tensor:
        logits: Tensor = model(_tokens(batch), return_type="logits")
        return logits

    return forward


def tlens_loss_of_output() -> LossOfOutput:
    """The loss of logits and the batch's tokens, each of which is the label of those before it."""
    return _of_logits(lambda batch: _next(_tokens(batch)), "auto")


def _mean_over_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of logits (…, tokens) and labels (…)."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def _of_logits(labels: Callable[[Any], Tensor], fused: str) -> LossOfOutput:
    if fused not in BACKENDS:
        raise SkerchError(f"Unknown back end {short(fused)}; choose {', '.join(BACKENDS)}.")
    return LossOfOutput(_mean_over_tokens, CrossEntropy(dim=-1, fused=fused), labels)


def _next(tokens: Tensor) -> Tensor:
    """At each position the token after it; none at the last one."""
    return F.pad(tokens[..., 1:], (0, 1), value=IGNORED)


def _labels(batch: Any) -> Tensor:
    """The labels (n, length) of a batch."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor) or labels.ndim < 2:
        got = f"of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else short(labels)
        raise SkerchError(
            f"A language model's batch is a mapping with labels (n, length), and they are {got}: "
            "one a token, for a causal model the input_ids. Of a classifier the loss is "
            "lambda model, batch: model(**batch).loss."
        )
    return labels


def _tokens(batch: Any) -> Tensor:
    tokens: Tensor = batch["tokens"] if isinstance(batch, Mapping) else batch
    return tokens
