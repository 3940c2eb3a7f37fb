"""The file of an exact decomposition, which stands beside that of the sketched one.

Datasets `eigenvalues` (N,), `eigenvectors` (N, k) and `residual` (N + 1,), which is
‖H - H_r‖_F of the best H_r of each rank; attributes `manifests`, of the sketched decomposition that
it was compared with, and `achieved`, the residual of that one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from skerch.decompositions.eigh_file import EighFile
from skerch.hdf5 import attribute, write_arrays, write_hdf5


class ExactFile(EighFile):
    """An exact decomposition's file, open for reading: use as a context manager."""

    @property
    def achieved(self) -> float:
        """‖H - W Λ Wᵀ‖_F of the sketched eigenpairs."""
        return float(attribute(self._file, "achieved"))


def write(
    path: Path, eigenvalues: Tensor, eigenvectors: Tensor, achieved: float, manifests: list[str]
) -> None:
    """Write all eigenvalues (N,), by decreasing magnitude, and the first eigenvectors (N, k)."""
    tail = eigenvalues.square().flip(0).cumsum(0).flip(0).sqrt()
    arrays = {
        "eigenvalues": eigenvalues,
        "eigenvectors": eigenvectors,
        "residual": torch.cat([tail, tail.new_zeros(1)]),
    }
    attributes = {"manifests": " ".join(manifests), "achieved": achieved}
    write_hdf5(path, lambda file: write_arrays(file, arrays, attributes))
