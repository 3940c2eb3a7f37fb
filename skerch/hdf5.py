"""HDF5 as this library uses it: checksums on everything, and damage that is named.

Files are written in the format of HDF5 1.10. It has checksums on all metadata, and any h5py of
today reads it (HDF5 1.14 cannot read what 2.0 calls "latest"). Datasets are uncompressed, with a
Fletcher checksum on every chunk: what can be read back is what was written. HDF5's locks do not
matter: our files never change once they have their name, and some file systems have no locks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import h5py
import numpy as np

from skerch.errors import SkerchError
from skerch.files import FileError, stream_atomically

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

CHUNK_ROWS = 4096


@contextmanager
def reading(path: Path | str, remedy: str | None = None) -> Iterator[None]:
    """Turn what HDF5 finds wrong in a file into a FileError with the file and the remedy."""
    try:
        yield
    except SkerchError:
        raise
    except FileNotFoundError:
        remedy = remedy or "run the same command again to make it."
        raise FileError(f"{path} is missing; {remedy}") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if number := getattr(error, "errno", None):  # the file may be sound
            reason = os.strerror(number)
            raise FileError(
                f"{path} cannot be read: {reason}; see to that, then run again."
            ) from error
        reason = " ".join(str(error).split()).strip("'\"")
        remedy = remedy or "delete it, and the same command makes it again."
        raise FileError(f"{path} is damaged ({reason}); {remedy}") from error


def open_hdf5(file: Path | IO[bytes], mode: str = "r", **options: Any) -> h5py.File:
    """Open an HDF5 file as h5py.File does, but without a lock where there is none to be had.

    No HDF5 file is opened elsewhere.
    """
    try:
        return h5py.File(file, mode, **options)
    except FileNotFoundError:
        raise
    except OSError:  # the file is damaged, or it is only the lock
        return h5py.File(file, mode, locking=False, **options)


def open_for_reading(path: Path, *, in_order: bool = False, **options: Any) -> h5py.File:
    """Open a file; raises FileError where it is missing or damaged.

    With `in_order` the system is told that it will be read from begin to end.
    """
    with reading(path):
        file = open_hdf5(path, **options)
    if in_order:
        with suppress(OSError, AttributeError):  # no such advice on this system
            os.posix_fadvise(file.id.get_vfd_handle(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return file


class Reader:
    """An open file, as a context manager: the base of our formats' readers."""

    def __init__(self, path: Path, *, in_order: bool = False):
        self._file = open_for_reading(path, in_order=in_order)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def manifests(self) -> list[str]:
        """The hashes of the manifests of the rounds that the file was computed from."""
        return str(attribute(self._file, "manifests")).split()


def attribute(file: h5py.File, name: str) -> Any:
    """An attribute of a file; raises FileError where it cannot be read."""
    with reading(file.filename):
        value = file.attrs[name]
        return value.decode() if isinstance(value, bytes) else value


def verify(path: Path) -> None:
    """Read all of a file, checksums included; raises FileError where something is damaged."""

    def read(name: str, node: h5py.Group | h5py.Dataset) -> None:
        list(node.attrs.values())
        if isinstance(node, h5py.Dataset):
            for start in range(0, len(node), CHUNK_ROWS):
                node[start : start + CHUNK_ROWS]

    with reading(path), open_hdf5(path) as file:
        read("/", file)
        file.visititems(read)


class Dataset:
    """A dataset whose reads are tensors, and raise FileError where it is damaged."""

    def __init__(self, group: h5py.Group, name: str):
        with reading(group.file.filename):
            self._dataset = group[name]
            self.shape: tuple[int, ...] = self._dataset.shape
            import torch  # status asks HDF5 files without it

            self.dtype: torch.dtype = getattr(torch, str(self._dataset.dtype))

    def __getitem__(self, key: Any) -> Tensor:
        with reading(self._dataset.file.filename):
            from torch import from_numpy

            return from_numpy(np.asarray(self._dataset[key]))  # one entry is no array

    def read_into(self, slab: Tensor, start: int, column: int = 0) -> None:
        """Read rows from `start` on into all rows of a slab, from its column `column` on."""
        rows, columns = (start, start + len(slab)), (column, column + self.shape[1])
        with reading(self._dataset.file.filename):
            self._dataset.read_direct(slab.numpy(), np.s_[slice(*rows)], np.s_[:, slice(*columns)])


def even_width(width: int, most: int) -> int:
    """The width of chunks of at most `most` columns, as few and as even as can be.

    A narrow last chunk would take as much room and time as the others.
    """
    return -(-width // max(1, -(-width // most)))


def create_dataset(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any, columns: int | None = None
) -> h5py.Dataset:
    """A dataset in chunks of a row slab by `columns` (default: all of them), unless it is empty."""
    if 0 in shape:
        return file.create_dataset(name, shape, dtype)
    chunks = _chunks(shape, columns)
    return file.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=True)


def stored_size(shape: tuple[int, ...], itemsize: int, columns: int | None = None) -> int:
    """The bytes that a dataset of `create_dataset` takes on disk: whole chunks."""
    if 0 in shape:
        return 0
    chunks = _chunks(shape, columns)
    whole = (-(-size // chunk) * chunk for size, chunk in zip(shape, chunks, strict=True))
    return math.prod(whole) * itemsize


def _chunks(shape: tuple[int, ...], columns: int | None) -> tuple[int, ...]:
    rows = min(CHUNK_ROWS, shape[0])
    return (rows, *shape[1:]) if columns is None else (rows, min(columns, shape[1]))


def write_hdf5(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Write a file that `fill` fills, atomically; raises FileError where there is no room."""

    def write(stream: FileIO) -> None:
        with open_hdf5(stream, "w", libver="v110") as file:
            fill(file)

    stream_atomically(path, write)


def write_arrays(
    file: h5py.File, arrays: Mapping[str, Tensor], attributes: Mapping[str, Any]
) -> None:
    """Add tensors and attributes to a file."""
    for name, value in attributes.items():
        # text of a fixed length lies in the header, which has a checksum; else in one that has not
        file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
    for name, tensor in arrays.items():
        array = tensor.cpu().numpy()
        create_dataset(file, name, array.shape, array.dtype)[...] = array
