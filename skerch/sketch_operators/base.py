"""The contract of a sketch operator: a random map, a pure function of (seed, role, shape)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skerch.errors import ShapeError, SkerchError
from skerch.linops.base import LinearOperator
from skerch.randomness import ROLES

MOST_BLOCK_BYTES = 64 * 2**20  # of dense rows in memory at a time


class SketchOperator(LinearOperator):
    """A random map S of shape (s, N), an isometry in expectation: E ‖Sx‖² = ‖x‖².

    S depends on (seed, role, shape) only, never on the device, the dtype, the number of threads or
    the way its rows are asked for. It is drawn on the CPU and moved. Rows are test vectors,
    products are compressions, and maps of different roles are independent.

    Arguments:
        shape: (s, N), both at least 1.
        seed: a non-negative integer.
        role: what the map is for, a key of `skerch.randomness.ROLES`.
        dtype: a real floating type, of the products and rows.
        device: where products are computed and rows delivered.

    Raises:
        SkerchError: for an argument outside these ranges.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        seed: int,
        role: str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        if min(shape) < 1:
            raise ShapeError(f"A sketch has at least one row and one column, not shape {shape}.")
        if seed < 0:
            raise SkerchError(f"A seed is a non-negative integer, not {seed}.")
        if role not in ROLES:
            raise SkerchError(f"Unknown role {role!r}; the roles are {', '.join(ROLES)}.")
        super().__init__(shape, dtype, device)
        self.seed = int(seed)
        self.role = role

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start … stop - 1 of S, of shape (stop - start, N), contiguous, on the device.

        Raises:
            ShapeError: unless 0 ≤ start ≤ stop ≤ s.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise ShapeError(
                f"Rows {start} to {stop} were asked of {self!r}; "
                f"ask for 0 <= start <= stop <= {self.shape[0]}."
            )
        return self._rows(start, stop).to(self.device, self.dtype)

    @abstractmethod
    def _rows(self, start: int, stop: int) -> Tensor:
        """The same rows on the CPU, in the precision in which they are drawn."""


class RowwiseSketch(SketchOperator):
    """A dense S whose row i is `scale` times a draw of its own; products stream over its rows.

    The entries are float32 numbers in every dtype.
    """

    @property
    def scale(self) -> float:
        """1/√s, rounded to float32."""
        return float(np.float32(self.shape[0] ** -0.5))

    @abstractmethod
    def _draw(self, row: int, out: NDArray[np.float32]) -> None:
        """Fill `out` (N,) with independent entries of mean zero and variance one."""

    def _rows(self, start: int, stop: int) -> Tensor:
        block = np.empty((stop - start, self.shape[1]), dtype=np.float32)
        for row, out in enumerate(block, start):
            self._draw(row, out)
        return torch.from_numpy(block).mul_(self.scale)

    @property
    def _step(self) -> int:
        return max(1, MOST_BLOCK_BYTES // (self.shape[1] * self.dtype.itemsize))

    @cached_property
    def _dense(self) -> Tensor:
        return self.rows(0, self.shape[0])

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Row blocks of at most `MOST_BLOCK_BYTES`; a map of one block is drawn once."""
        if self._step >= self.shape[0]:
            yield slice(0, self.shape[0]), self._dense
            return
        for start in range(0, self.shape[0], self._step):
            stop = min(start + self._step, self.shape[0])
            yield slice(start, stop), self.rows(start, stop)

    def _matmul(self, X: Tensor) -> Tensor:
        return torch.cat([block @ X for _, block in self._blocks()])

    def _rmatmul(self, X: Tensor) -> Tensor:
        Y = X.new_zeros(self.shape[1], X.shape[1])
        for span, block in self._blocks():
            Y.addmm_(block.T, X[span])
        return Y
