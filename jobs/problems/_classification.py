"""What the bundled classifiers share: images, dense networks, initialisations, the loss."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, TensorDataset

from skerch.curvature import supervised_loss
from skerch.jobs.errors import ConfigError
from skerch.randomness import stream


class LabelledTensors(TensorDataset):
    """Inputs (n, …) and integer labels (n,) in memory; the labels also as `targets`."""

    def __init__(self, inputs: Tensor, targets: Tensor):
        super().__init__(inputs, targets)
        self.targets = targets


class RandomImages(Dataset[tuple[Tensor, int]]):
    """Images of independent N(0, 1) pixels, each drawn when asked for from (split, index) alone.

    Classes follow each other in turn; `targets` (size,) holds them.
    """

    def __init__(self, split: str, size: int, shape: tuple[int, int, int], classes: int):
        self.split, self.shape = int(is_test(split)), shape
        self.targets = torch.arange(size, device="cpu") % classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = int(self.targets[index])  # ends an iteration with IndexError
        pixels = stream(0, "synthetic", self.split, index).standard_normal(self.shape, "float32")
        return torch.from_numpy(pixels), label


def torchvision_images(
    root: str | None, layout: str, open_dataset: Callable[[Any], Dataset[Any]], way_out: str
) -> Dataset[Any]:
    """What `open_dataset(torchvision)` gives, where it can be had.

    `layout` is what lies in `root`, and `way_out` what to do where it does not.

    Raises:
        ConfigError: root is missing, torchvision is not installed, or the files cannot be read.
    """
    if root is None:
        raise ConfigError(f"problem.root is missing: the folder that holds {layout}; {way_out}.")
    try:
        import torchvision
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The images need torchvision ({error}); pip install torchvision."
        ) from error
    try:
        return open_dataset(torchvision)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"problem.root: {layout} cannot be read in {root} ({error}); {way_out}."
        ) from error


def grey_images(kind: str, split: str, root: str | None, download: bool) -> LabelledTensors:
    """MNIST or FashionMNIST in memory: images (n, 1, 28, 28) with pixels in [0, 1]."""
    read: Any = torchvision_images(
        root,
        f"{kind}/raw",
        lambda torchvision: getattr(torchvision.datasets, kind)(
            root, train=not is_test(split), download=download
        ),
        f"put {kind} there, or set problem.download=true or problem.synthetic=true",
    )
    return LabelledTensors(read.data[:, None].float() / 255, read.targets)


def normalised_images(
    kind: str,
    folder: str,
    split: str,
    root: str | None,
    download: bool,
    *,
    mean: tuple[float, ...],
    deviation: tuple[float, ...],
) -> Dataset[Any]:
    """CIFAR10 or CIFAR100 with each channel normalised; `root` holds `folder`."""

    def open_dataset(torchvision: Any) -> Dataset[Any]:
        transforms = torchvision.transforms
        normalised = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(mean, deviation)]
        )
        images: Dataset[Any] = getattr(torchvision.datasets, kind)(
            root, train=not is_test(split), transform=normalised, download=download
        )
        return images

    way_out = f"put {kind} there, or set problem.download=true or problem.synthetic=true"
    return torchvision_images(root, folder, open_dataset, way_out)


def is_test(split: str) -> bool:
    """Whether a split is the test split; of the two that these problems have."""
    if split not in ("train", "test"):
        raise ConfigError(f"hessian.splits: the problem has train and test, not {split!r}.")
    return split == "test"


def mlp(*widths: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """A fully connected network with PyTorch's default initialisation."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def draw_truncated(model: nn.Module, deviation: float, bias: float) -> None:
    """Draw weights from N(0, deviation²) within two deviations, and set biases to a number."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(layer.weight, 0, deviation, -2 * deviation, 2 * deviation)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


mean_cross_entropy = supervised_loss(cross_entropy)
