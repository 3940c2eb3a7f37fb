"""A measurement array on disk: block files that exist whole or not at all, and readers for them.

<directory>/manifest.json
<directory>/blocks/block-000000.h5
<directory>/leftouter_ALL.h5      virtual view, for people
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import h5py
import torch
from torch import Tensor

from skerch.errors import SkerchError
from skerch.hdf5 import Dataset, attribute, open_for_reading, write_arrays, write_hdf5
from skerch.measurements import manifest as manifests
from skerch.measurements.manifest import Block, Manifest, block_path, manifest_path, range_path
from skerch.measurements.team import Buffers

# half of the files that the system lets a process open; it says -1 for no limit
MOST_OPEN_FILES = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] % 2**31) // 2
VIEW_NAME = "leftouter_ALL.h5"


class BlockError(SkerchError):
    """A block file that belongs to another array."""


class MeasurementArray:
    """The array in `directory`: its manifest and its blocks, which any process may write."""

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self.manifest = manifests.read(manifest_path(self.directory))
        self.hash = self.manifest.hash()
        self._held: dict[int, Tensor] | None = None

    @classmethod
    def create(cls, directory: Path, manifest: Manifest) -> MeasurementArray:
        """Write the manifest, which may be there already, and the virtual view.

        Raises ManifestError where another manifest is there, BlockError for blocks of another one.
        """
        directory = Path(directory)
        for block in manifest.blocks():
            path = block_path(directory, block.index)
            if path.exists():
                _open_block(path, manifest.hash(), block.index).close()
        manifests.create(manifest_path(directory), manifest)
        write_hdf5(directory / VIEW_NAME, lambda file: _add_view(file, manifest))
        return cls(directory)

    @staticmethod
    def restore(directory: Path) -> bool:
        """Write a lost manifest again, as a block holds it; false if there is no block."""
        path = next(iter(sorted(directory.glob("blocks/block-*.h5"))), None)
        if path is None:
            return False
        with open_for_reading(path) as file:
            text = Dataset(file, "manifest")[...].numpy().tobytes().decode(errors="replace")
        MeasurementArray.create(directory, manifests.parse(text, path))
        return True

    def path(self, index: int) -> Path:
        """The file of block `index`."""
        return block_path(self.directory, index)

    def missing(self, indices: Iterable[int] | None = None) -> list[Block]:
        """The blocks without a file, in order; of `indices` only, if given."""
        wanted = None if indices is None else set(indices)
        return [
            block
            for block in self.manifest.blocks()
            if (wanted is None or block.index in wanted) and not self.path(block.index).exists()
        ]

    def write(self, block: Block, arrays: Mapping[str, Tensor]) -> None:
        """Write a block: to a temporary file, to disk, and only then under its name."""
        attributes = {"manifest": self.hash, "block": block.index, "kind": block.kind}
        attributes |= {"start": block.start, "stop": block.stop}
        whole = {**arrays, "manifest": self._text}
        write_hdf5(self.path(block.index), lambda file: write_arrays(file, whole, attributes))

    @cached_property
    def _text(self) -> Tensor:
        """The manifest, as every block holds it."""
        return torch.frombuffer(bytearray(self.manifest.text().encode()), dtype=torch.uint8)

    def remove_blocks(self) -> None:
        """Delete all block files and the view of them; the manifest stays."""
        for block in self.manifest.blocks():
            self.path(block.index).unlink(missing_ok=True)
        (self.directory / VIEW_NAME).unlink(missing_ok=True)

    def open(self, block: Block) -> h5py.File:
        """Open a block for reading, refused unless it belongs to this manifest."""
        return _open_block(self.path(block.index), self.hash, block.index)

    def hold(self) -> None:
        """Hold columns in memory once they are read, for who reads them again and again."""
        self._held = {}

    def held(self, block: Block, name: str) -> Tensor | None:
        """The dataset `name` of a block, if columns are held in memory."""
        if self._held is None:
            return None
        if block.index not in self._held:
            with self.open(block) as file:
                self._held[block.index] = Dataset(file, name)[...]
        return self._held[block.index]

    def small(self, name: str) -> Tensor:
        """The blocks' small arrays `name`, (rows, b) or (b,) each, joined to one in float64.

        Blocks of stored columns and of probes have `cross`; those of test vectors `norm`, `inner`;
        those of probes `start`.
        """
        having = [
            block
            for block in self.manifest.blocks()
            if (
                block.stored
                if name == "cross"
                else block.kind == ("test", "probe")[name == "start"]
            )
        ]
        parts = []
        for block in having:
            with self.open(block) as file:
                parts.append(Dataset(file, name)[...].double())
        return torch.cat(parts, dim=-1)

    @property
    def quadratic(self) -> Tensor | None:
        """gᵀHg of the probes, (q,), in float64; None where an older version measured any."""
        parts = []
        for block in self.manifest.blocks():
            if block.kind == "probe":
                with self.open(block) as file:
                    if "quadratic" not in file:
                        return None
                    parts.append(Dataset(file, "quadratic")[...].double())
        return torch.cat(parts)


def _open_block(path: Path, manifest_hash: str, index: int) -> h5py.File:
    # chunks are read once, and there are many files
    file = open_for_reading(path, in_order=True, rdcc_nbytes=0)
    if (attribute(file, "manifest"), attribute(file, "block")) != (manifest_hash, index):
        file.close()
        raise BlockError(
            f"{path} was measured for another manifest or as another block; delete it, or all "
            f"of {path.parent}, and run again to measure anew."
        )
    return file


class StoredColumns:
    """Row slabs of the stored columns [Y | HZ] of several rounds' arrays, side by side.

    The columns Y of the test vectors come first, in the order of the rounds, then those of the
    `probes`, if asked for. Before them are the columns of the first round's range, which is its
    `start`, if it has one. The first `MOST_OPEN_FILES` block files stay open; the others are opened
    for each slab.
    """

    def __init__(self, arrays: list[MeasurementArray], *, probes: bool = True):
        self.size = arrays[0].manifest.size
        self.dtype = getattr(torch, arrays[0].manifest.dtype)
        self.sources = [
            (array, block, name)
            for kind, name in (("test", "leftouter"), ("probe", "probe"))[: 1 + probes]
            for array in arrays
            for block in array.manifest.blocks()
            if block.kind == kind and block.stored
        ]
        first = arrays[0].manifest
        self.start = 0 if first.range_hash is None else first.columns
        self.stored = self.start + sum(
            block.stop - block.start for _, block, name in self.sources if name == "leftouter"
        )
        self.width = self.start + sum(block.stop - block.start for _, block, _ in self.sources)
        self._open = ExitStack()
        self._kept: dict[Path, Dataset] = {}  # of files that stay open
        self._buffers = Buffers(self.dtype)

    def __call__(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of all columns, in the stored dtype and in memory of `Buffers`."""
        slab = self._buffers(stop - start, self.width)
        column = self.start
        if self.start:
            self._started.read_into(slab, start)
        for array, block, name in self.sources:
            end = column + block.stop - block.start
            held = array.held(block, name)
            if held is not None:
                slab[:, column:end] = held[start:stop]
            else:
                with self._opened(array, block, name) as dataset:
                    dataset.read_into(slab, start, column)
            column = end
        return slab

    @cached_property
    def _started(self) -> Dataset:
        """The columns of the start, refused unless the first round was measured with them."""
        array = self.sources[0][0]
        path = range_path(array.directory)
        file = self._open.enter_context(open_for_reading(path))
        if attribute(file, "hash") != array.manifest.range_hash:
            raise BlockError(
                f"{array.directory} was measured with another start than {path} is; delete "
                f"{array.directory.parents[1]} to measure anew."
            )
        return Dataset(file, "Q")

    @contextmanager
    def _opened(self, array: MeasurementArray, block: Block, name: str) -> Iterator[Dataset]:
        path = array.path(block.index)
        if path in self._kept:
            yield self._kept[path]
            return
        with ExitStack() as closing:
            dataset = Dataset(closing.enter_context(array.open(block)), name)
            if len(self._kept) < MOST_OPEN_FILES:
                self._open.push(closing.pop_all())
                self._kept[path] = dataset
            yield dataset

    def __enter__(self) -> StoredColumns:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.clear()
        self._open.close()


def _add_view(file: h5py.File, manifest: Manifest) -> None:
    """A virtual dataset over the stored columns; what is not measured yet reads as NaN."""
    view = h5py.VirtualLayout((manifest.size, manifest.stored), manifest.dtype)
    for block in manifest.blocks():
        if block.kind == "test" and block.stored:
            shape = (manifest.size, block.stop - block.start)
            source = h5py.VirtualSource(str(block_path(Path(), block.index)), "leftouter", shape)
            view[:, block.start : block.stop] = source
    file.create_virtual_dataset("leftouter", view, fillvalue=float("nan"))
