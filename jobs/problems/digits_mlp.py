"""scikit-learn's handwritten digits, 8x8, and an MLP 64-20-20-10 with tanh: 1,930 parameters.

Pixels are scaled to [0, 1]. Every third of the 1,797 images is a test image (599), so that each
class has 51 of them at least. Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits.
"""

from __future__ import annotations

import torch

from skerch.jobs.problems import Problem
from skerch.jobs.problems._classification import (
    LabelledTensors,
    is_test,
    mean_cross_entropy,
    mlp,
)


def digits_mlp() -> Problem:
    """The problem; it needs no file and no argument."""
    return Problem(lambda: mlp(64, 20, 20, 10), _data, mean_cross_entropy)


def _data(split: str) -> LabelledTensors:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    in_split = (torch.arange(len(labels), device="cpu") % 3 == 0) == is_test(split)
    pixels = torch.from_numpy(images).float() / 16
    return LabelledTensors(pixels[in_split], torch.from_numpy(labels).long()[in_split])
