"""DeepOBS's MLP 784-1000-500-100-10 on Fashion-MNIST, ReLU: 1,336,610 parameters.

Pixels are scaled to [0, 1]. Schneider, Balles and Hennig 2019, DeepOBS; Xiao, Rasul and Vollgraf
2017, Fashion-MNIST.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.data import Dataset

from skerch.jobs.problems import Problem
from skerch.jobs.problems._classification import (
    RandomImages,
    draw_truncated,
    grey_images,
    is_test,
    mean_cross_entropy,
    mlp,
)


def fmnist_mlp(root: str | None = None, download: bool = False, synthetic: bool = False) -> Problem:
    """The problem; `root` is the folder that holds `FashionMNIST/raw`, filled by `download`.

    With `synthetic` the images are random, as many and of the same shape, and need no file.
    """

    def data(split: str) -> Dataset[Any]:
        if synthetic:
            return RandomImages(split, 10_000 if is_test(split) else 60_000, (1, 28, 28), 10)
        return grey_images("FashionMNIST", split, root, download)

    return Problem(_model, data, mean_cross_entropy)


def _model() -> nn.Sequential:
    """DeepOBS's initialisation: truncated normal weights of deviation 0.03; biases 0."""
    model = mlp(784, 1000, 500, 100, 10, activation=nn.ReLU)
    draw_truncated(model, deviation=0.03, bias=0.0)
    return model
