"""ResNet-18 on ImageNet, 224x224 and 1000 classes: 11,689,512 parameters.

Images are resized to 256 and cropped to 224 at the centre, and channels normalised. The network has
torchvision's names and order of parameters and its initialisation, so that its state dicts fit; it
is written down here since a worker would spend two seconds on importing torchvision. He, Zhang,
Ren and Sun 2016, Deep Residual Learning for Image Recognition, table 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import relu
from torch.utils.data import Dataset

from skerch.jobs.problems import Problem
from skerch.jobs.problems._classification import (
    RandomImages,
    is_test,
    mean_cross_entropy,
    torchvision_images,
)

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


def imagenet_resnet18(root: str | None = None, synthetic: bool = False) -> Problem:
    """The problem; `root` holds `train` and `val`, each with a folder of images for every class.

    With `synthetic` the images are random, as many and of the same shape, and need no file.
    """

    def data(split: str) -> Dataset[Any]:
        if synthetic:
            size = 50_000 if is_test(split) else 1_281_167
            return RandomImages(split, size, (3, 224, 224), 1000)
        return _images(split, root)

    return Problem(_ResNet18, data, mean_cross_entropy)


class _Block(nn.Module):
    """Two convolutions, around which the input goes as it is, or through one of size 1."""

    def __init__(self, channels: int, filters: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.downsample: nn.Module | None = None
        if stride > 1:
            narrow = nn.Conv2d(channels, filters, 1, stride, bias=False)
            self.downsample = nn.Sequential(narrow, nn.BatchNorm2d(filters))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + (x if self.downsample is None else self.downsample(x)))


class _ResNet18(nn.Module):
    """He's initialisation by fan-out for convolutions, PyTorch's default for the dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(_Block(64, 64, 1), _Block(64, 64, 1))
        self.layer2 = nn.Sequential(_Block(64, 128, 2), _Block(128, 128, 1))
        self.layer3 = nn.Sequential(_Block(128, 256, 2), _Block(256, 256, 1))
        self.layer4 = nn.Sequential(_Block(256, 512, 2), _Block(512, 512, 1))
        self.fc = nn.Linear(512, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _images(split: str, root: str | None) -> Dataset[Any]:
    folder = "val" if is_test(split) else "train"

    def open_dataset(torchvision: Any) -> Dataset[Any]:
        transforms = torchvision.transforms
        validation = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, DEVIATION),
            ]
        )
        images: Dataset[Any] = torchvision.datasets.ImageFolder(Path(str(root), folder), validation)
        return images

    return torchvision_images(
        root,
        f"{folder}/CLASS/IMAGE.JPEG",
        open_dataset,
        "put ImageNet there, or set problem.synthetic=true",
    )
