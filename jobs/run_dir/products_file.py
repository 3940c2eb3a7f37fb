"""Products of a Hessian that a task has made so far, for its next attempt if it is killed.

A file of the folder `products` has those made since the one before: a dataset (N, b) each, whose
name is a hash of the Hessian's provenance and of the vectors that it is the product of. So whoever
asks for the same vectors again gets the same bits, and nothing has to know how far a method was.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from skerch.hdf5 import Dataset, open_for_reading, write_arrays, write_hdf5

SECONDS = 30.0  # between two files, at most
HELD = 2**28  # bytes in memory until then, at most beside a block


class Products:
    """The products in a folder, of the Hessian with the hash `of`."""

    def __init__(self, folder: Path, of: str):
        self._folder, self._of = folder, of
        self._paths: dict[str, Path] = {}
        for path in sorted(folder.glob("[!.]*.h5")):
            with open_for_reading(path) as file:
                self._paths |= dict.fromkeys(file, path)
        self._new: dict[str, Tensor] = {}
        self._written = time.monotonic()

    def of(self, X: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
        """The product of vectors (N, b): the one that is kept, or else `multiply(X)`, kept.

        Raises FileError where a file is damaged, or cannot be written.
        """
        digest = hashlib.sha256(f"{self._of} {tuple(X.shape)}".encode())
        digest.update(X.cpu().contiguous().numpy().data)
        name = digest.hexdigest()
        if name in self._paths:
            with open_for_reading(self._paths[name]) as file:
                return Dataset(file, name)[...].to(X.device)
        product = multiply(X)
        self._new[name] = product.cpu().clone()
        held = sum(each.nbytes for each in self._new.values())
        if held >= HELD or time.monotonic() - self._written >= SECONDS:
            self.write()
        return product

    def write(self) -> None:
        """Write a file of those that no file has yet."""
        if self._new:
            path = self._folder / f"{len(self._paths) + len(self._new):08d}.h5"
            write_hdf5(path, lambda file: write_arrays(file, self._new, {}))
            self._paths |= dict.fromkeys(self._new, path)
            self._new = {}
        self._written = time.monotonic()
