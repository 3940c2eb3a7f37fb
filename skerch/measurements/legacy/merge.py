"""Merge the layouts of skerch 0.x and 1.x, and our own arrays, into one file."""

from __future__ import annotations

import glob
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skerch.errors import SkerchError
from skerch.files import sweep
from skerch.hdf5 import CHUNK_ROWS, open_hdf5, reading, verify, write_hdf5
from skerch.measurements.array import VIEW_NAME, MeasurementArray
from skerch.measurements.legacy.layout import FLAG_TYPE, INITIAL_FLAG
from skerch.measurements.manifest import manifest_path, range_path
from skerch.measurements.merge import MergeError, merge
from skerch.measurements.range_finder import RangeFile

MOST_SLAB_BYTES = 2**27  # of vectors in memory, unless one file has more
MOST_SLAB_VECTORS = 64  # in memory, unless one file has more
MEASURE_REMEDY = "measure it, then merge."
RESTORE_REMEDY = "restore the view, then merge."


@dataclass(frozen=True)
class _Part:
    """A file, and the range of vectors that it holds."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True)
class _Layout:
    """What a view says of its files, in the order of their vectors."""

    view: Path
    shape: tuple[int, ...]
    dtype: Any
    axis: int  # of the vectors: 1 for the columns of 0.x, 0 for the rows of 1.x
    parts: list[_Part]

    def region(self, start: int, stop: int) -> tuple[slice, ...]:
        """Where vectors [start, stop) are in the whole."""
        return tuple(
            slice(start, stop) if axis == self.axis else slice(0, length)
            for axis, length in enumerate(self.shape)
        )

    def slabs(self) -> list[list[_Part]]:
        """The files in groups of as many as are in memory together."""
        size = self.shape[1 - self.axis] * self.dtype.itemsize
        step = max(1, min(MOST_SLAB_VECTORS, MOST_SLAB_BYTES // size) // self.parts[0].stop)
        return [self.parts[i : i + step] for i in range(0, len(self.parts), step)]


def merge_hdf5(
    in_path: Path, out_path: Path, *, ok_flag: str | None = None, delete_subfiles: bool = False
) -> None:
    """Merge a layout into the file `out_path`, which appears whole or not at all.

    `in_path` is the `<prefix>_ALL.h5` of skerch 0.x or 1.x, merged into `data` and `flags` of the
    same shapes. It may also be the folder or view of one of our measurement arrays, or the folder
    of all rounds, merged as the pipeline does. Flags must equal `ok_flag`; without it, none may be
    as initialised where others are not. Our blocks have no flags: one that is there is complete.
    One file is open at a time, and some columns are in memory. With `delete_subfiles` the merged
    files and the view are removed once the result is seen to hold them all. A removal that was cut
    short goes on when the same is asked again.

    Raises MergeError, which names the first file at fault: missing, damaged, never written, of
    another flag, shape or type, or not finite; and for a view with a gap or an overlap. Raises
    FileError where there is no room.
    """
    directory = in_path if in_path.is_dir() else in_path.parent
    if not in_path.exists():
        raise MergeError(f"There is no {in_path}; name the <prefix>_ALL.h5 of a layout.")
    if out_path.resolve() == in_path.resolve():
        raise MergeError(f"{out_path} is what is to be merged; name another as out_path.")
    if out_path.is_dir() or (out_path.exists() and not _is_merged(out_path)):
        raise MergeError(f"{out_path} is there and no merged file; name another as out_path.")
    sweep(out_path.parent, f".{glob.escape(out_path.name)}.*.tmp")
    if in_path.is_dir() or (in_path.name == VIEW_NAME and manifest_path(directory).exists()):
        _merge_rounds(directory, out_path, delete_subfiles)
        return
    layout = _read_view(in_path)
    if out_path.resolve() in {part.path.resolve() for part in layout.parts}:
        raise MergeError(f"{out_path} is a file to be merged; name another as out_path.")
    if not (delete_subfiles and _is_left_over(layout, out_path)):
        flags = _flags(layout, ok_flag)
        write_hdf5(out_path, lambda file: _fill(file, layout, flags))
    if delete_subfiles:
        _delete(layout, out_path)


def _is_merged(path: Path) -> bool:
    """Whether a file is a merge's result, which may be written over."""
    with suppress(OSError), open_hdf5(path) as file:
        return "summary" in file or {"data", "flags"} == set(file)
    return False


def _merge_rounds(directory: Path, out_path: Path, delete: bool) -> None:
    """Merge the measurement array in a folder, or the rounds in its subfolders."""
    folders = [directory, *(path for path in directory.iterdir() if path.is_dir())]
    arrays = [MeasurementArray(path) for path in folders if manifest_path(path).exists()]
    arrays.sort(key=lambda array: array.manifest.round)
    rounds = [array.manifest.round for array in arrays]
    if not rounds or rounds != list(range(1, len(rounds) + 1)):
        raise MergeError(
            f"{directory} holds {f'rounds {rounds}' if rounds else 'no measurement array'}; name "
            "a <prefix>_ALL.h5, the folder of a first round, or the folder that holds all rounds."
        )
    last = range_path(arrays[-1].directory)
    with ExitStack() as stack:
        opened = stack.enter_context(RangeFile(last, arrays[:-1])) if len(arrays) > 1 else None
        merge(arrays, out_path, range_file=opened)
    if delete:
        verify(out_path)
        for array in arrays:
            array.remove_blocks()
            range_path(array.directory).unlink(missing_ok=True)


def _read_view(path: Path) -> _Layout:
    """The files of a view, which must follow each other along one axis without gap or overlap."""
    with reading(path, RESTORE_REMEDY), open_hdf5(path) as file:
        data = file.get("data")
        if not (isinstance(data, h5py.Dataset) and data.is_virtual):
            raise MergeError(f"{path} is no view of other files; name a <prefix>_ALL.h5.")
        shape, dtype, vectors = data.shape, data.dtype, len(file["flags"])
        sources = []
        for source in data.virtual_sources():
            first, last = source.vspace.get_select_bounds()
            bounds = [(start, stop + 1) for start, stop in zip(first, last, strict=True)]
            sources.append((bounds, path.parent / source.file_name))
    partial = [axis for axis, n in enumerate(shape) if any(b[axis] != (0, n) for b, _ in sources)]
    if len(shape) != 2 or len(partial) > 1 or not sources:
        raise MergeError(f"{path} is no view of skerch's: its files do not follow along one axis.")
    axis = partial[0] if partial else int(shape[0] != vectors)
    parts = sorted((_Part(p, *b[axis]) for b, p in sources), key=lambda part: part.start)
    due = 0
    for part in parts:
        if part.start != due:
            raise MergeError(
                f"{path} has {'a gap' if part.start > due else 'an overlap'}: {part.path} begins "
                f"at vector {part.start} and not {due}; {RESTORE_REMEDY}"
            )
        due = part.stop
    if due != shape[axis]:
        raise MergeError(
            f"{path} has a gap: after {parts[-1].path} it has no file for vectors {due} to "
            f"{shape[axis] - 1}; {RESTORE_REMEDY}"
        )
    return _Layout(path, shape, dtype, axis, parts)


def _flags(layout: _Layout, ok_flag: str | None) -> list[str]:
    """All flags; raises MergeError for every fault that shows without reading the data."""
    flags: list[str] = []
    faults = []
    for part in layout.parts:
        try:
            flags += _inspect(layout, part)
        except SkerchError as error:
            faults.append(str(error))
    if not faults:
        # flags that all are as initialised are not in use
        bad = set(flags) - {ok_flag} if ok_flag is not None else {INITIAL_FLAG}
        if ok_flag is None and set(flags) == bad:
            bad = set()
        instead = "" if ok_flag is None else f" instead of {ok_flag!r}"
        for part in layout.parts:
            if wrong := bad.intersection(flags[part.start : part.stop]):
                faults.append(f"{part.path} has the flag {min(wrong)!r}{instead}; {MEASURE_REMEDY}")
    if faults:
        others = f" {len(faults) - 1} more files are at fault." if len(faults) > 1 else ""
        raise MergeError(faults[0] + others)
    return flags


def _inspect(layout: _Layout, part: _Part) -> list[str]:
    """The flags of a file whose data are there, of the right shape and type."""
    shape = tuple(s.stop - s.start for s in layout.region(part.start, part.stop))
    with reading(part.path, MEASURE_REMEDY), open_hdf5(part.path) as file:
        data = file["data"]
        flags: list[str] = file["flags"].asstr()[...].tolist()
        expected = (prod(shape), layout.dtype, part.stop - part.start)
        if (data.size, data.dtype, len(flags)) != expected:
            raise MergeError(
                f"{part.path} holds {data.dtype} {data.shape} with {len(flags)} flags instead of "
                f"{layout.dtype} {shape} with {expected[2]}; {MEASURE_REMEDY}"
            )
        if not data.id.get_storage_size():
            raise MergeError(f"{part.path} has never been written; {MEASURE_REMEDY}")
    return flags


def _read(layout: _Layout, part: _Part) -> Any:
    """The data of a file as they lie in the whole; raises MergeError where one is not finite."""
    with reading(part.path, MEASURE_REMEDY), open_hdf5(part.path) as file:
        data = file["data"][...]
        data = data.reshape([s.stop - s.start for s in layout.region(part.start, part.stop)])
    wrong = ~np.isfinite(data).all(axis=1 - layout.axis)
    if wrong.any():
        raise MergeError(
            f"{part.path} is not finite at vector {part.start + wrong.argmax()}; {MEASURE_REMEDY}"
        )
    return data


def _fill(file: h5py.File, layout: _Layout, flags: list[str]) -> None:
    """Copy the files, a slab at a time, into a file's `data` and `flags`."""
    slabs = layout.slabs()
    chunks = [min(CHUNK_ROWS, length) for length in layout.shape]
    chunks[layout.axis] = min(CHUNK_ROWS, slabs[0][-1].stop)
    data = file.create_dataset(
        "data", layout.shape, layout.dtype, chunks=tuple(chunks), fletcher32=True
    )
    for parts in slabs:
        region = layout.region(parts[0].start, parts[-1].stop)
        data[region] = np.concatenate([_read(layout, part) for part in parts], layout.axis)
    file.create_dataset("flags", data=flags, dtype=FLAG_TYPE)


def _holds(merged: Path, layout: _Layout) -> bool:
    """Whether a merged file has what the files have that are there."""
    with reading(merged), open_hdf5(merged) as file:
        data, flags = file["data"], file["flags"].asstr()[...].tolist()
        if (data.shape, data.dtype) != (layout.shape, layout.dtype):
            return False
        for parts in layout.slabs():
            first = parts[0].start
            slab = data[layout.region(first, parts[-1].stop)]
            for part in parts:
                if part.path.exists() and not (
                    flags[part.start : part.stop] == _inspect(layout, part)
                    and np.array_equal(
                        slab[layout.region(part.start - first, part.stop - first)],
                        _read(layout, part),
                    )
                ):
                    return False
    return True


def _is_left_over(layout: _Layout, merged: Path) -> bool:
    """Whether the removal of merged files was cut short: what is left of them is in `merged`."""
    if all(part.path.exists() for part in layout.parts):
        return False
    with suppress(SkerchError):
        return _holds(merged, layout)
    return False


def _delete(layout: _Layout, merged: Path) -> None:
    """Remove the files that are in the merged one, and then the view."""
    if not _holds(merged, layout):
        raise MergeError(f"{merged} does not hold what {layout.view} names; nothing was removed.")
    for part in layout.parts:
        part.path.unlink(missing_ok=True)
    layout.view.unlink()
