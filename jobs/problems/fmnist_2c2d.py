"""DeepOBS's 2c2d on Fashion-MNIST: two convolutions, two dense layers, ReLU; 3,274,634 parameters.

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
)


def fmnist_2c2d(
    root: str | None = None, download: bool = False, synthetic: bool = False
) -> Problem:
    """The problem; `root` is the folder that holds `FashionMNIST/raw`, filled by `download`.

    With `synthetic` the images are random, as many and of the same shape, and need no file.
    """

    def data(split: str) -> Dataset[Any]:
        if synthetic:
            return RandomImages(split, 10_000 if is_test(split) else 60_000, (1, 28, 28), 10)
        return grey_images("FashionMNIST", split, root, download)

    return Problem(_model, data, mean_cross_entropy)


def _model() -> nn.Sequential:
    """DeepOBS's initialisation: truncated normal weights of deviation 0.05; biases 0.05."""
    layers: list[nn.Module] = []
    for channels, filters in ((1, 32), (32, 64)):
        convolution = nn.Conv2d(channels, filters, 5, padding=2)
        layers += [convolution, nn.ReLU(), nn.MaxPool2d(2)]
    dense = nn.Linear(7 * 7 * 64, 1024)
    model = nn.Sequential(*layers, nn.Flatten(), dense, nn.ReLU(), nn.Linear(1024, 10))
    draw_truncated(model, deviation=0.05, bias=0.05)
    return model
