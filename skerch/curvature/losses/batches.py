"""How the loss of a batch is computed, and how batches combine."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel

from skerch.curvature.batching import channels_last
from skerch.errors import ShapeError, SkerchError

LossFn = Callable[[Module, Any], Tensor]
BatchWeight = Callable[[Any], float]


class NoDataError(SkerchError):
    """Data without a batch of positive weight, whose mean loss is 0/0."""


def weighted(data: Iterable[Any], batch_weight: BatchWeight) -> Iterator[tuple[float, Any]]:
    """Weights and batches; those of weight 0, whose mean is 0/0, are left out."""
    seen = False
    batches = iter(data)
    for number, batch in enumerate(batches):
        try:
            weight = float(batch_weight(batch))
        except ShapeError:  # it is not known, and cancels where there is no other batch
            if number or any(True for _ in batches):
                raise
            weight = 1.0
        if not 0 <= weight < math.inf:
            raise SkerchError(f"A batch weighs {weight}; batch_weight must be finite and ≥ 0.")
        if weight:
            seen = True
            yield weight, batch
    if not seen:
        raise NoDataError(
            "The data have no batch of positive weight, so their mean loss is 0/0; give a "
            "non-empty list of batches and a batch_weight that counts them."
        )


def run(
    model: Module, function: LossFn, batch: Any, memory_format: str, derivatives: int = 2
) -> Any:
    """function(model, batch), which has so many derivatives."""
    if memory_format == "channels_last":
        batch = channels_last(batch)
    with ExitStack() as stack:
        if derivatives > 1:  # which fused kernels of attention and compiled graphs do not have
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
        return function(model, batch)


def batch_loss(
    model: Module, loss_fn: LossFn, batch: Any, memory_format: str, *, derivatives: int = 2
) -> Tensor:
    """The loss of a batch, which has so many derivatives; raises where it is no scalar."""
    loss = run(model, loss_fn, batch, memory_format, derivatives)
    if isinstance(loss, Tensor) and loss.is_complex():
        raise SkerchError("loss_fn returned a complex loss; a loss is real, as by .abs() or .real.")
    if not isinstance(loss, Tensor) or loss.ndim:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise SkerchError(
            f"loss_fn must return a tensor of shape (), the batch's mean, and returned {got}; "
            "take the mean."
        )
    return loss


@contextmanager
def differentiating() -> Iterator[None]:
    """Derivatives are taken within, whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
