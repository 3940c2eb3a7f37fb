"""DeepOBS's mnist_mini: MNIST at 16x16, MLP 256-20-20-20-20-20-10 with tanh, 7,030 parameters.

Pixels are scaled to [0, 1] and the images resized bilinearly, antialiased. Schneider, Balles and
Hennig 2019, DeepOBS.
"""

from __future__ import annotations

from typing import Any

from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from skerch.jobs.problems import Problem
from skerch.jobs.problems._classification import (
    LabelledTensors,
    RandomImages,
    grey_images,
    is_test,
    mean_cross_entropy,
    mlp,
)


def mnist_mini(root: str | None = None, download: bool = False, synthetic: bool = False) -> Problem:
    """The problem; `root` is the folder that holds `MNIST/raw`, filled by `download`.

    With `synthetic` the images are random, as many and of the same shape, and need no file.
    """

    def data(split: str) -> Dataset[Any]:
        if synthetic:
            return RandomImages(split, 10_000 if is_test(split) else 60_000, (1, 16, 16), 10)
        return _images(split, root, download)

    return Problem(lambda: mlp(256, 20, 20, 20, 20, 20, 10), data, mean_cross_entropy)


def _images(split: str, root: str | None, download: bool) -> LabelledTensors:
    images, labels = grey_images("MNIST", split, root, download).tensors
    small = interpolate(images, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    return LabelledTensors(small, labels)
