"""What the bundled problems share: labelled tensors, a tanh network, the mean cross-entropy."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from skerch.jobs.schema import ConfigError


class LabelledTensors(TensorDataset):
    """Inputs (n, …) and integer labels (n,) in memory; the labels also as `targets`."""

    def __init__(self, inputs: Tensor, targets: Tensor):
        super().__init__(inputs, targets)
        self.targets = targets


def is_test(split: str) -> bool:
    """Whether a split is the test split; of the two that these problems have."""
    if split not in ("train", "test"):
        raise ConfigError(f"hessian.splits: the problem has train and test, not {split!r}.")
    return split == "test"


def tanh_mlp(*widths: int) -> nn.Sequential:
    """A fully connected network with tanh between its layers, PyTorch's default initialisation."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def mean_cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean over a batch of the cross-entropy of logits (n, classes) and labels (n,)."""
    inputs, targets = batch
    return cross_entropy(model(inputs), targets)
