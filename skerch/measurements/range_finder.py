"""A later round's test vectors: an orthonormal basis of the range that the round before found.

With Q_r the test vectors of round r ≥ 2 and Y_i the measurements of round i,

    [Q₂ … Q_r] = [Y₁ … Y_{r-1}] P,    Q_r spanning what is new in Y_{r-1} = H Q_{r-1},

so that three rounds and more are a block Lanczos method with full orthogonalisation. They are
orthonormal to rounding, times the cancellation in Y P; what would cancel 8 digits is left out.

The file has the datasets

- `Q`: Q_r (N, columns), in the array's dtype;
- `map`: P, in float64;
- `gram`: [Y₁ … Y_{r-1}]ᵀ[Y₁ … Y_{r-1}], so that later rounds compute only its further columns;

and the attributes `hash`, the SHA-256 of Q and P, and `manifests`, the hashes of the manifests of
the rounds before.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import torch
from torch import Tensor
from torch.nn.functional import pad

from skerch.errors import SkerchError
from skerch.hdf5 import Dataset, Reader, attribute, create_dataset, write_arrays
from skerch.measurements.array import MeasurementArray, StoredColumns
from skerch.measurements.gram import gram, multiply, orthonormalise
from skerch.measurements.team import ALONE, Rows, Team, write_together

MOST_CANCELLATION = 1e8  # of ‖diag(‖y_i‖) p_j‖ for a column of Y P: half of float64's digits


class RangeError(SkerchError):
    """A range file that belongs to other arrays."""


def range_map(
    G: Tensor,
    rows: Rows,
    size: int,
    columns: int,
    dtype: torch.dtype,
    before: Tensor | None = None,
    team: Team = ALONE,
) -> Tensor:
    """P in float64, from the Gram matrix G and the rows of [Y₁ … Y_{r-1}].

    `before` is P of the round before, if there is one. The `columns` that are new in P span the
    directions of the largest singular values of Y_{r-1}, less its part in the ranges before. Where
    that has a lower numerical rank, the remaining columns are zero: the size of a round does not
    depend on its numbers.
    """
    if before is None:
        B = G.new_zeros(len(G), 0)
        ordered = columns < len(G)
        new = orthonormalise(G, rows, size, dtype, ordered=ordered, team=team).P[:, :columns]
    else:
        B = pad(before, (0, 0, 0, len(G) - len(before)))
        E = torch.eye(len(G), dtype=G.dtype, device=G.device)[:, len(before) :]
        last = G[len(before) :, len(before) :]
        T, scale = team.one(
            lambda: (E - B @ (B.T @ (G @ E)), float(torch.linalg.matrix_norm(last, 2)))
        )
        rest = orthonormalise(T.T @ G @ T, rows, size, dtype, scale, T, team=team)
        new = T @ rest.P[:, :columns]
    cancellation = torch.linalg.norm(torch.diagonal(G).sqrt()[:, None] * new, dim=0)
    new = torch.where(cancellation < MOST_CANCELLATION, new, 0.0)
    return torch.cat([B, pad(new, (0, columns - new.shape[1]))], dim=1)


def find_range(
    arrays: list[MeasurementArray],
    path: Path,
    columns: int,
    before: RangeFile | None = None,
    team: Team = ALONE,
) -> None:
    """Write the next round's range file, with `columns` columns, from the rounds so far.

    `before` is the range file of the last round, unless that is the first. Raises RangeError where
    the last round was measured with another one.
    """
    last = arrays[-1].manifest
    if last.range_hash != (before.hash if before else None):
        raise RangeError(
            f"{arrays[-1].directory} was measured with another range file than is there now; "
            "delete it to measure it anew."
        )
    with StoredColumns(arrays, probes=False) as rows:
        known, known_map = (before.gram, before.map) if before else (None, None)
        G = gram(rows, rows.size, known=known, team=team)
        own = range_map(G, rows, rows.size, columns, rows.dtype, known_map, team)
        P = team.one(lambda: own)

        def fill(file: h5py.File | None) -> None:
            digest = hashlib.sha256(P.contiguous().numpy().data)
            if file is not None:
                Q = create_dataset(file, "Q", (rows.size, columns), last.dtype, last.block_size)

            def write(start: int, stop: int, slab: Tensor) -> None:
                digest.update(slab.numpy().data)
                Q[start:stop] = slab.numpy()

            multiply(rows, rows.size, P[:, -columns:], rows.dtype, write, team)
            if file is not None:
                attributes = {"hash": digest.hexdigest(), "manifests": hashes(arrays)}
                write_arrays(file, {"map": P, "gram": G}, attributes)

        write_together(path, fill, team)


class RangeFile(Reader):
    """The range file after the rounds `arrays`, open for reading: use as a context manager.

    Raises RangeError where it is of other rounds.
    """

    def __init__(self, path: Path, arrays: list[MeasurementArray]):
        super().__init__(path)
        if attribute(self._file, "manifests") != hashes(arrays):
            self._file.close()
            raise RangeError(
                f"{path} is of other measurements than {arrays[-1].directory}; delete "
                f"{arrays[-1].directory.parent} to measure anew."
            )

    @property
    def hash(self) -> str:
        """The SHA-256 of Q and the map."""
        return str(attribute(self._file, "hash"))

    @property
    def map(self) -> Tensor:
        """P; its last columns give this round's Q."""
        return Dataset(self._file, "map")[...]

    @property
    def gram(self) -> Tensor:
        """YᵀY in float64, of the stored columns Y of all rounds before."""
        return Dataset(self._file, "gram")[...]

    def columns(self, start: int, stop: int) -> Tensor:
        """Columns [start, stop) of Q, (N, stop - start)."""
        return Dataset(self._file, "Q")[:, start:stop]


def hashes(arrays: list[MeasurementArray]) -> str:
    """The hashes of the manifests of some rounds, in one line."""
    return " ".join(array.manifest.hash() for array in arrays)
