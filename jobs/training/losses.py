"""Losses and accuracies of a problem's network on its data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skerch.curvature.batching import count_examples, split_batch, to_device
from skerch.errors import ShapeError
from skerch.jobs.config.schema import Training
from skerch.jobs.errors import ConfigError
from skerch.jobs.problems import Problem
from skerch.jobs.training import datapoints


@dataclass(frozen=True)
class Losses:
    """The loss of a problem: of batches, splits, and the datapoints of the Hessian."""

    problem: Problem
    training: Training
    data: Mapping[str, Any]  # datasets by split
    datapoints: Mapping[str, Any]  # the Hessian's, by split
    device: torch.device

    def of_batch(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch on the device, of shape (); raises ConfigError for other shapes."""
        loss = self.problem.loss_fn(model, batch)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else loss
            raise ConfigError(
                f"The problem's loss_fn returned {found}; it must return a scalar mean."
            )
        return loss

    def of_datapoints(self, model: nn.Module, split: str) -> float:
        """The loss in eval mode of the first of the Hessian's datapoints: always the same."""
        model.eval()
        batch = self.datapoints[split]
        with suppress(ShapeError):  # whose examples cannot be told apart: all of them
            batch = split_batch(batch, self.training.batch_size)[0]
        return float(self.of_batch(model, to_device(batch, self.device)).detach())

    def of_split(self, model: nn.Module, split: str) -> dict[str, float]:
        """The mean loss over a split in eval mode, and the accuracy of a classifier.

        With `training.eval_samples`, of as many of its samples, evenly spaced.
        """
        model.eval()
        dataset = self.data[split]
        outputs: list[Any] = []
        hook = model.register_forward_hook(lambda *call: outputs.append(call[-1]))
        weight_of = self.problem.batch_weight or count_examples
        total = weights = hits = judged = 0.0
        size = datapoints.count(dataset, split)
        judging = min(size, self.training.eval_samples or size)
        indices = torch.arange(judging, device="cpu") * size // max(judging, 1)
        for on_cpu in datapoints.batches(dataset, torch.split(indices, self.training.batch_size)):
            batch = to_device(on_cpu, self.device)
            outputs.clear()
            weight = float(weight_of(batch))
            loss = self.of_batch(model, batch).detach()  # it may take derivatives itself
            total += weight * float(loss)
            weights += weight
            correct = _correct(outputs, batch)
            if correct is not None:
                hits += float(correct.sum())
                judged += len(correct)
        hook.remove()
        figures = {"loss": total / weights if weights else math.nan}
        return figures | ({"accuracy": hits / judged} if judged else {})


def _correct(outputs: Iterable[Any], batch: Any) -> Tensor | None:
    """Whether each sample is classified rightly; None where this is no classification.

    It is one if the batch is (inputs, integer labels (n,)) and the network's only output logits
    (n, classes).
    """
    labels = batch[1] if isinstance(batch, tuple) and len(batch) == 2 else None
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        return None
    logits = list(outputs)
    if len(logits) != 1 or not isinstance(logits[0], Tensor):
        return None
    if logits[0].ndim != 2 or len(logits[0]) != len(labels):
        return None
    return logits[0].argmax(dim=1) == labels
