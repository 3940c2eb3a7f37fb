"""The file of the gradient of the mean loss at one step, of a split: a dataset `gradient` (N,)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from skerch.hdf5 import Dataset, open_for_reading, write_arrays, write_hdf5


def write(path: Path, gradient: Tensor) -> None:
    """Write a gradient (N,)."""
    write_hdf5(path, lambda file: write_arrays(file, {"gradient": gradient}, {}))


def read(path: Path) -> Tensor | None:
    """The gradient (N,); None where an older version measured, which wrote none."""
    if not path.exists():
        return None
    with open_for_reading(path) as file:
        return Dataset(file, "gradient")[...]
