"""What is trained: replace the model, the data and the loss with your own.

python -m skerch check experiment.yaml tells what is not fit for a Hessian.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from skerch.curvature import supervised_loss
from skerch.jobs.problems import Problem


def make_problem(width: int = 32) -> Problem:
    """The problem; arguments are keys of `problem` in experiment.yaml."""

    def model() -> nn.Module:
        """The network, without touching data; every worker builds it anew."""
        return nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 4))

    def data(split: str) -> Dataset[Any]:
        """Examples (x, y) of a split; only the training calls this. Here, a quadratic's signs."""
        generator = torch.Generator().manual_seed(["train", "test"].index(split))
        x = torch.randn(2000, 16, generator=generator, device="cpu")
        y = 2 * (x[:, 0] * x[:, 1] > 0) + (x[:, 2] > 0)
        return TensorDataset(x, y)

    # of (model, batch): the mean over the batch; for a loss of your own, see docs/own_model.md
    return Problem(model, data, supervised_loss(nn.functional.cross_entropy))
