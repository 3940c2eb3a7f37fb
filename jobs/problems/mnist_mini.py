"""DeepOBS's mnist_mini: MNIST at 16x16, MLP 256-20-20-20-20-20-10 with tanh, 7,030 parameters.

Pixels are scaled to [0, 1] and the images resized bilinearly, antialiased. Schneider, Balles and
Hennig 2019, DeepOBS.
"""

from __future__ import annotations

from pathlib import Path

from torch.nn.functional import interpolate

from skerch.jobs.problems import Problem
from skerch.jobs.problems._classification import (
    LabelledTensors,
    is_test,
    mean_cross_entropy,
    tanh_mlp,
)
from skerch.jobs.schema import ConfigError


def mnist_mini(root: str | None = None, download: bool = False) -> Problem:
    """The problem; `root` is the folder that holds `MNIST/raw`, filled by `download`."""
    return Problem(
        lambda: tanh_mlp(256, 20, 20, 20, 20, 20, 10),
        lambda split: _data(split, root, download),
        mean_cross_entropy,
    )


def _data(split: str, root: str | None, download: bool) -> LabelledTensors:
    if root is None:
        raise ConfigError(
            "problem.root is missing: the folder that holds MNIST/raw, or with "
            "problem.download=true the one to download it to."
        )
    try:
        from torchvision.datasets import MNIST
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"mnist_mini needs torchvision ({error}); pip install torchvision."
        ) from error
    try:
        mnist = MNIST(Path(root), train=not is_test(split), download=download)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"problem.root: MNIST cannot be read in {root} ({error}); put its files into "
            f"{Path(root) / 'MNIST' / 'raw'}, or set problem.download=true."
        ) from error
    images = mnist.data[:, None].float() / 255
    small = interpolate(images, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    return LabelledTensors(small, mnist.targets)
