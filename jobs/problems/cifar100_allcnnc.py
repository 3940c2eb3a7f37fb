"""DeepOBS's All-CNN-C on CIFAR-100: nine convolutions, ReLU, dropout; 1,387,108 parameters.

Channels are normalised by the mean and standard deviation of the training images; there is no
augmentation. Springenberg, Dosovitskiy, Brox and Riedmiller 2015, Striving for Simplicity, table 1;
Schneider, Balles and Hennig 2019, DeepOBS.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.data import Dataset

from skerch.jobs.problems import Problem
from skerch.jobs.problems._classification import (
    RandomImages,
    is_test,
    mean_cross_entropy,
    normalised_images,
)

MEAN = (0.50707516, 0.48654887, 0.44091784)
DEVIATION = (0.26733429, 0.25643846, 0.27615047)


def cifar100_allcnnc(
    root: str | None = None, download: bool = False, synthetic: bool = False
) -> Problem:
    """The problem; `root` is the folder that holds `cifar-100-python`, filled by `download`.

    With `synthetic` the images are random, as many and of the same shape, and need no file.
    """

    def data(split: str) -> Dataset[Any]:
        if synthetic:
            return RandomImages(split, 10_000 if is_test(split) else 50_000, (3, 32, 32), 100)
        return normalised_images(
            "CIFAR100",
            "cifar-100-python",
            split,
            root,
            download,
            mean=MEAN,
            deviation=DEVIATION,
        )

    return Problem(_model, data, mean_cross_entropy)


def _model() -> nn.Sequential:
    """Xavier's normal initialisation; biases 0.1. The logits are means of 6x6 rectified maps."""
    layers = [
        nn.Dropout(0.2),
        *_convolution(3, 96, 3),
        *_convolution(96, 96, 3),
        *_halving_convolution(96),
        nn.Dropout(0.5),
        *_convolution(96, 192, 3),
        *_convolution(192, 192, 3),
        *_halving_convolution(192),
        nn.Dropout(0.5),
        *_convolution(192, 192, 3, padding=0),
        *_convolution(192, 192, 1),
        *_convolution(192, 100, 1),
        nn.AvgPool2d(6),
        nn.Flatten(),
    ]
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.xavier_normal_(layer.weight)
            nn.init.constant_(layer.bias, 0.1)
    return nn.Sequential(*layers)


def _convolution(
    channels: int, filters: int, kernel: int, padding: int | str = "same"
) -> list[nn.Module]:
    return [nn.Conv2d(channels, filters, kernel, padding=padding), nn.ReLU()]


def _halving_convolution(channels: int) -> list[nn.Module]:
    """Stride 2 with TensorFlow's padding, which is at the right and at the bottom alone."""
    return [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2), nn.ReLU()]
