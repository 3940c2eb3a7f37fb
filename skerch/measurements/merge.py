"""Consolidation: one streaming pass over the blocks of all rounds gives the merged file.

It holds the summary (see `skerch.measurements.summary`) and, if asked for, the stored columns
`leftouter` (N, m) and the probes' `probe` (N, q).
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from skerch.errors import SkerchError
from skerch.hdf5 import (
    Dataset,
    Reader,
    attribute,
    create_dataset,
    even,
    write_arrays,
    write_hdf5,
)
from skerch.measurements.array import MeasurementArray, StoredColumns
from skerch.measurements.gram import Progress, gram
from skerch.measurements.range_finder import RangeFile, hashes
from skerch.measurements.summary import Summary, summarise
from skerch.measurements.team import ALONE, Buffers, Rows, Team


class MergeError(SkerchError):
    """Measurements that cannot be merged yet, or that a merged file is not of."""


def merge(
    arrays: list[MeasurementArray],
    path: Path,
    *,
    range_file: RangeFile | None = None,
    consolidate: bool = True,
    progress: Progress | None = None,
    team: Team = ALONE,
) -> None:
    """Merge the rounds' arrays into the file `path`, which appears whole or not at all.

    Several rounds need the range file of the last one. Raises MergeError for missing blocks and
    for rounds that do not belong together, BlockError for a foreign block.
    """
    _check_rounds(arrays, range_file)
    for array in arrays:
        missing = array.missing()
        if missing:
            raise MergeError(
                f"{array.directory} lacks {len(missing)} of {len(array.manifest.blocks())} blocks "
                f"(the first is {array.path(missing[0].index).name}); measure them, then merge."
            )
    with StoredColumns(arrays) as columns:

        def fill(file: h5py.File | None) -> None:
            _fill(file, arrays, columns, range_file, consolidate, progress, team)

        if team.writes:
            write_hdf5(path, fill)
        else:
            fill(None)


def _check_rounds(arrays: list[MeasurementArray], range_file: RangeFile | None) -> None:
    """Refuse a round that does not follow the others; the range file is bound to all but the last.

    The manifest of each later round has the hash of its own range file.
    """
    found = None if range_file is None else range_file.hash
    first, last = arrays[0].manifest, arrays[-1].manifest
    strangers = [array for array in arrays if array.manifest.provenance != first.provenance]
    if last.range_hash != found:
        strangers.append(arrays[-1])
    if strangers:
        raise MergeError(
            f"{strangers[0].directory} was laid out after other rounds than are there now; delete "
            "it to measure it anew."
        )


def _fill(
    file: h5py.File | None,  # of the member that writes
    arrays: list[MeasurementArray],
    columns: StoredColumns,
    range_file: RangeFile | None,
    consolidate: bool,
    progress: Progress | None,
    team: Team,
) -> None:
    first, m, size = arrays[0], columns.columns, columns.size
    if consolidate and file is not None:
        width, dtype = first.manifest.block_size, first.manifest.dtype
        q = columns.width - m
        stored = create_dataset(file, "leftouter", (size, m), dtype, even(m, width))
        probes = create_dataset(file, "probe", (size, q), dtype, even(q, width))

    def copy(start: int, stop: int, slab: Tensor) -> None:
        whole, rows = slab.numpy(), np.s_[start:stop]
        stored.write_direct(whole, np.s_[:, :m], rows)
        probes.write_direct(whole, np.s_[:, m:], rows)

    summary = summarise(
        gram(
            columns,
            size,
            known=None if range_file is None else range_file.gram,
            team=team,
            copy=copy if consolidate else None,
            progress=progress,
        ),
        columns,
        size,
        m,
        columns.dtype,
        cross=team.one(lambda: first.small("cross")),
        norm=team.one(lambda: first.small("norm")),
        inner=team.one(lambda: first.small("inner")) if first.manifest.compresses else None,
        range_map=None if range_file is None else range_file.map,
        team=team,
    )
    if file is None:
        return
    matrices = {
        f"summary/{f.name}": value
        for f in fields(Summary)
        if isinstance(value := getattr(summary, f.name), Tensor)
    }
    attributes = {
        "manifests": hashes(arrays),
        "matrices": " ".join(matrices),
        "consolidated": consolidate,
        "epsilon": summary.epsilon,
    }
    write_arrays(file, matrices, attributes)


class MergedArray(Reader):
    """A merged file, open for reading: use as a context manager."""

    def __init__(self, path: Path):
        super().__init__(path, in_order=True)

    @property
    def manifests(self) -> list[str]:
        """The hashes of the manifests that it was merged from."""
        return str(attribute(self._file, "manifests")).split()

    @property
    def summary(self) -> Summary:
        """The small matrices."""
        names = attribute(self._file, "matrices").split()
        matrices = {name.removeprefix("summary/"): Dataset(self._file, name)[...] for name in names}
        return Summary(epsilon=float(attribute(self._file, "epsilon")), **matrices)

    @property
    def rows(self) -> Rows | None:
        """The stored columns by row ranges, None if the file was merged without them."""
        if not attribute(self._file, "consolidated"):
            return None
        columns = Dataset(self._file, "leftouter")
        buffers = Buffers(columns.dtype)

        def rows(start: int, stop: int) -> Tensor:
            slab = buffers(stop - start, columns.shape[1])
            columns.read_into(slab, start)
            return slab

        return rows
