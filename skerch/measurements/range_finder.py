"""The second round's test vectors: an orthonormal basis Q of the range that the first one found.

The file holds `Q` (N, columns) in the array's dtype and `map`, P₁ with Q = Y₁ P₁, in float64; its
attribute `hash` is the SHA-256 of both, and `manifest` the hash of the first round's manifest.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import torch
from torch import Tensor

from skerch.errors import SkerchError
from skerch.hdf5 import (
    Dataset,
    Reader,
    attribute,
    create_dataset,
    write_arrays,
    write_hdf5,
)
from skerch.measurements.array import MeasurementArray, StoredColumns
from skerch.measurements.gram import Rows, gram, orthonormalise, slabs


class RangeError(SkerchError):
    """A range file that belongs to another array."""


def range_map(rows: Rows, size: int, columns: int, dtype: torch.dtype) -> Tensor:
    """P₁ (m₁, columns) in float64, so that Q = Y₁ P₁ has orthonormal columns.

    They span the directions of the largest singular values of Y₁. Where Y₁ has a lower numerical
    rank the last columns are zero, so that the size of a round does not depend on its numbers.
    """
    P = orthonormalise(gram(rows, size), rows, size, dtype).P[:, :columns]
    return torch.nn.functional.pad(P, (0, columns - P.shape[1]))


def find_range(array: MeasurementArray, path: Path, columns: int) -> None:
    """Write the range file of `columns` columns from the blocks of the first round."""
    with StoredColumns([array]) as stored:
        m, size = stored.columns, stored.size

        def rows(start: int, stop: int) -> Tensor:
            return stored(start, stop)[:, :m]

        P = range_map(rows, size, columns, stored.dtype)

        def fill(file: h5py.File) -> None:
            digest = hashlib.sha256(P.contiguous().numpy().tobytes())
            Q = create_dataset(
                file, "Q", (size, columns), array.manifest.dtype, array.manifest.block_size
            )
            for start, stop in slabs(size):
                slab = (rows(start, stop).double() @ P).to(stored.dtype).numpy()
                digest.update(slab.tobytes())
                Q[start:stop] = slab
            attributes = {"hash": digest.hexdigest(), "manifest": array.manifest.hash()}
            write_arrays(file, {"map": P}, attributes)

        write_hdf5(path, fill)


class RangeFile(Reader):
    """The range that the first round `array` found, open for reading: use as a context manager.

    Raises RangeError where the file is of another first round.
    """

    def __init__(self, path: Path, array: MeasurementArray):
        super().__init__(path)
        if attribute(self._file, "manifest") != array.manifest.hash():
            self._file.close()
            raise RangeError(
                f"{path} is of other measurements than {array.directory}; delete "
                f"{array.directory.parent} to measure anew."
            )

    @property
    def hash(self) -> str:
        """The SHA-256 of its content."""
        return str(attribute(self._file, "hash"))

    @property
    def map(self) -> Tensor:
        """P₁ (m₁, columns)."""
        return Dataset(self._file, "map")[...]

    def columns(self, start: int, stop: int) -> Tensor:
        """Columns [start, stop) of Q, (N, stop - start)."""
        return Dataset(self._file, "Q")[:, start:stop]
