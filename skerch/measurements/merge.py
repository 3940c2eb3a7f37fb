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
from skerch.hdf5 import Dataset, Reader, attribute, create_dataset, even_width, write_arrays
from skerch.measurements.array import MeasurementArray, StoredColumns
from skerch.measurements.gram import Copy, Progress, gram
from skerch.measurements.manifest import Manifest
from skerch.measurements.range_finder import RangeFile, hashes
from skerch.measurements.summary import Summary, summarise
from skerch.measurements.team import ALONE, Buffers, Rows, Team, write_together


class MergeError(SkerchError):
    """Measurements that cannot be merged yet, or that are not those of a merged file."""


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
    with StoredColumns(arrays) as rows:

        def fill(file: h5py.File | None) -> None:
            copy = _copier(file, rows, arrays[0].manifest) if consolidate else None
            summary = _summarise(arrays, rows, range_file, copy, progress, team)
            if file is not None:
                _write_summary(file, summary, hashes(arrays), consolidate)

        write_together(path, fill, team)


def summary_of(
    arrays: list[MeasurementArray], range_file: RangeFile | None, team: Team = ALONE
) -> Summary:
    """The summary of the first rounds' arrays, of the last of which is the range file.

    Raises MergeError for rounds that do not belong together.
    """
    _check_rounds(arrays, range_file)
    with StoredColumns(arrays) as rows:
        return _summarise(arrays, rows, range_file, None, None, team)


def _check_rounds(arrays: list[MeasurementArray], range_file: RangeFile | None) -> None:
    """Refuse a round that was laid out after other rounds than those here.

    The last manifest names its range file; `RangeFile` has checked the rounds before.
    """
    range_hash = None if range_file is None else range_file.hash
    first, last = arrays[0].manifest, arrays[-1].manifest
    strangers = [array for array in arrays if array.manifest.provenance != first.provenance]
    if last.range_hash != range_hash:
        strangers.append(arrays[-1])
    if strangers:
        raise MergeError(
            f"{strangers[0].directory} was laid out after other rounds than are there now; delete "
            "it to measure it anew."
        )


def _copier(file: h5py.File | None, rows: StoredColumns, manifest: Manifest) -> Copy:
    """A function that copies slabs of [Y, HZ] into the file, for the member that writes."""
    m, q = rows.stored, rows.width - rows.stored
    if file is not None:
        size, dtype, width = manifest.size, manifest.dtype, manifest.block_size
        stored = create_dataset(file, "leftouter", (size, m), dtype, even_width(m, width))
        probes = create_dataset(file, "probe", (size, q), dtype, even_width(q, width))

    def copy(start: int, stop: int, slab: Tensor) -> None:
        whole, span = slab.numpy(), np.s_[start:stop]
        stored.write_direct(whole, np.s_[:, :m], span)
        probes.write_direct(whole, np.s_[:, m:], span)

    return copy


def _summarise(
    arrays: list[MeasurementArray],
    rows: StoredColumns,
    range_file: RangeFile | None,
    copy: Copy | None,
    progress: Progress | None,
    team: Team,
) -> Summary:
    first, size = arrays[0], rows.size
    known, range_map = (range_file.gram, range_file.map) if range_file else (None, None)
    G = gram(rows, size, known=known, team=team, copy=copy, progress=progress)

    def small(name: str) -> Tensor:
        return team.one(lambda: first.small(name))

    return summarise(
        G,
        rows,
        size,
        rows.stored,
        rows.dtype,
        cross=G.new_zeros(0, rows.width - rows.stored) if rows.start else small("cross"),
        norm=G.new_zeros(0) if rows.start else small("norm"),
        inner=small("inner") if first.manifest.compresses else None,
        range_map=range_map,
        fresh=range_file.fresh if range_file else None,
        quadratic=team.one(lambda: first.quadratic),
        start_probes=small("start") if rows.start else None,
        team=team,
    )


def _write_summary(file: h5py.File, summary: Summary, manifests: str, consolidated: bool) -> None:
    matrices = {
        f"summary/{f.name}": value
        for f in fields(Summary)
        if isinstance(value := getattr(summary, f.name), Tensor)
    }
    attributes = {
        "manifests": manifests,
        "matrices": " ".join(matrices),
        "consolidated": consolidated,
        "epsilon": summary.epsilon,
    }
    write_arrays(file, matrices, attributes)


class MergedArray(Reader):
    """A merged file, open for reading: use as a context manager."""

    def __init__(self, path: Path):
        super().__init__(path, in_order=True)

    @property
    def summary(self) -> Summary:
        """The small matrices."""
        names = attribute(self._file, "matrices").split()
        matrices = {name.removeprefix("summary/"): Dataset(self._file, name)[...] for name in names}
        return Summary(epsilon=float(attribute(self._file, "epsilon")), **matrices)

    @property
    def rows(self) -> Rows | None:
        """The stored columns by row ranges; None if the file was merged without them."""
        if not attribute(self._file, "consolidated"):
            return None
        columns = Dataset(self._file, "leftouter")
        buffers = Buffers(columns.dtype)

        def rows(start: int, stop: int) -> Tensor:
            slab = buffers(stop - start, columns.shape[1])
            columns.read_into(slab, start)
            return slab

        return rows
