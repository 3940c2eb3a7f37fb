"""DeepOBS's 3c3d on CIFAR-10: three convolutions, three dense layers, ReLU; 895,210 parameters.

Channels are normalised by the mean and standard deviation of the training images; there is no
augmentation. Schneider, Balles and Hennig 2019, DeepOBS.
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

MEAN = (0.49139968, 0.48215841, 0.44653091)
DEVIATION = (0.24703223, 0.24348513, 0.26158784)


def cifar10_3c3d(
    root: str | None = None, download: bool = False, synthetic: bool = False
) -> Problem:
    """The problem; `root` is the folder that holds `cifar-10-batches-py`, filled by `download`.

    With `synthetic` the images are random, as many and of the same shape, and need no file.
    """

    def data(split: str) -> Dataset[Any]:
        if synthetic:
            return RandomImages(split, 10_000 if is_test(split) else 50_000, (3, 32, 32), 10)
        return normalised_images(
            "CIFAR10",
            "cifar-10-batches-py",
            split,
            root,
            download,
            mean=MEAN,
            deviation=DEVIATION,
        )

    return Problem(_model, data, mean_cross_entropy)


def _model() -> nn.Sequential:
    """Xavier's initialisation, normal for convolutions and uniform for dense layers; biases 0."""
    layers: list[nn.Module] = []
    for channels, filters, kernel, padding in ((3, 64, 5, 0), (64, 96, 3, 0), (96, 128, 3, 1)):
        convolution = nn.Conv2d(channels, filters, kernel, padding=padding)
        nn.init.xavier_normal_(convolution.weight)
        layers += [convolution, nn.ReLU(), nn.MaxPool2d(3, stride=2, ceil_mode=True)]
    layers.append(nn.Flatten())
    for fan_in, fan_out in ((3 * 3 * 128, 512), (512, 256), (256, 10)):
        dense = nn.Linear(fan_in, fan_out)
        nn.init.xavier_uniform_(dense.weight)
        layers += [dense, nn.ReLU()]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers[:-1])
