"""Lay out files for measurements as skerch 0.x does."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import h5py
import numpy as np

from skerch.errors import UsageError
from skerch.files import FileError, cause
from skerch.hdf5 import open_hdf5

FLAG_TYPE = h5py.string_dtype()
INITIAL_FLAG = "initialized"


class LayoutError(UsageError):
    """A layout that cannot be made as it is asked for."""


def create_hdf5_layout(
    directory: Path,
    shape: tuple[int, int],
    outer: int,
    inner: int,
    dtype: str = "float32",
    *,
    sym: bool = False,
) -> list[Path]:
    """Lay out the sketches of an (h, w) operator as skerch 0.x does, and return their views.

    They are `leftouter` (w, outer), `inner` (inner, inner) and, unless the operator is symmetric,
    `rightouter` (h, outer). A file that is not measured yet holds zeros, as there; a view whose
    file is missing reads as NaN, where that of 0.x has zeros.

    Raises LayoutError for sizes and types that make no sketch and for a folder that is not empty,
    FileError where there is no room.
    """
    h, w = shape
    if min(h, w, outer, inner) < 1:
        raise LayoutError(f"Shape {h},{w}, outer {outer} and inner {inner} must be at least 1.")
    if sym and h != w:
        raise LayoutError(f"Shape {h},{w} is not square, as a symmetric operator is; drop --sym.")
    if dtype not in ("float16", "float32", "float64", "complex64", "complex128"):
        raise LayoutError(f"dtype {dtype} is none of float16, 32, 64 and complex64, 128.")
    if max(h, w, inner) * np.dtype(dtype).itemsize >= 2**32:
        raise LayoutError(f"Shape {h},{w}, inner {inner} has {dtype} columns above HDF5's 4 GiB.")
    sketches = {"leftouter": (w, outer), "inner": (inner, inner)}
    if not sym:
        sketches["rightouter"] = (h, outer)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise LayoutError(f"{directory} is not empty; empty it, or name another folder.")
        for prefix, (rows, columns) in sketches.items():
            names = [f"{prefix}_{column:010d}.h5" for column in range(columns)]
            part = _empty_part(rows, dtype)
            for name in names:
                (directory / name).write_bytes(part)
            (directory / f"{prefix}_ALL.h5").write_bytes(_view(names, rows, dtype))
    except OSError as error:
        raise FileError(
            f"{error.filename or directory} cannot be written: {cause(error)}. Make room or give "
            f"permission there, empty {directory}, and run the same command again."
        ) from error
    return [directory / f"{prefix}_ALL.h5" for prefix in sketches]


def _empty_part(rows: int, dtype: str) -> bytes:
    """The content of a column's file before it is measured."""
    image = BytesIO()
    with open_hdf5(image, "w") as file:
        for name, length, kind in (("data", rows, dtype), ("flags", 1, FLAG_TYPE)):
            shape = (length,)
            file.create_dataset(name, shape, kind, maxshape=shape, chunks=shape, compression="lzf")
        file["flags"][:] = INITIAL_FLAG
    return image.getvalue()


def _view(names: list[str], rows: int, dtype: str) -> bytes:
    """The content of the file that shows all columns as one dataset."""
    data = h5py.VirtualLayout((rows, len(names)), dtype)
    flags = h5py.VirtualLayout((len(names),), FLAG_TYPE)
    for column, name in enumerate(names):
        data[:, column] = h5py.VirtualSource(name, "data", (rows,))
        flags[column] = h5py.VirtualSource(name, "flags", (1,))
    image = BytesIO()
    with open_hdf5(image, "w") as file:
        file.create_virtual_dataset("data", data, fillvalue=np.array(np.nan, dtype))
        file.create_virtual_dataset("flags", flags)
    return image.getvalue()
