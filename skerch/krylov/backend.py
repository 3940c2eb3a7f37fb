"""Backends: inner products and random vectors, the two things that depend on where vectors lie.

Algorithms do all else entry by entry. So they run as they are where each process holds some rows of
every vector: the other backend sums inner products over processes.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skerch.errors import SkerchError
from skerch.randomness import stream

V = TypeVar("V")
DRAWN_ROWS = 2**18  # in one stream, so that the rows [a, b) cost no more than b - a rows to draw
SLAB_ENTRIES = 2**19  # that are converted to float64 at a time


class LinAlgBackend(Protocol[V]):
    """What algorithms need of vectors (n,), and of blocks (n, b) of b vectors as columns.

    Vectors are where the operator is. What `inner` and `dots` return is small: float64, on the CPU.
    """

    def dot(self, a: V, b: V) -> Tensor:
        """⟨a, b⟩, of any equal shape, as a scalar tensor."""

    def norm(self, a: V) -> Tensor:
        """‖a‖₂ as a scalar tensor."""

    def axpy(self, alpha: float | Tensor, a: V, b: V) -> V:
        """α a + b."""

    def scale(self, alpha: float | Tensor, a: V) -> V:
        """α a."""

    def zeros_like(self, a: V) -> V:
        """A zero vector of a's shape, dtype and device."""

    def randn_like(self, a: V, *, generator: torch.Generator | None = None) -> V:
        """A standard Gaussian vector of a's shape, dtype and device."""

    def rademacher_like(self, a: V, *, generator: torch.Generator | None = None) -> V:
        """A vector of signs, ±1 with equal probability, of a's shape, dtype and device."""

    def inner(self, A: V, B: V) -> Tensor:
        """AᵀB, (a, b), of blocks (n, a) and (n, b)."""

    def dots(self, A: V, B: V) -> Tensor:
        """The inner products of the columns of two blocks (n, b), (b,)."""

    def rows(self, size: int) -> range | Tensor:
        """Which entries of a vector of `size` entries are here, in ascending order."""

    def randn(self, like: V, columns: Sequence[int], *, size: int, seed: int, role: str) -> V:
        """Standard Gaussian vectors as columns (n, b): the rows that are here.

        Column i depends on (seed, role, columns[i]) alone, and not on which rows are where. `like`
        has the dtype and the device.
        """

    def rademacher(self, like: V, columns: Sequence[int], *, size: int, seed: int, role: str) -> V:
        """Vectors of signs, as for `randn`."""

    def seed(self, seed: int | None) -> int:
        """The seed itself, or for None a fresh one, on which all processes agree."""


class SingleDeviceBackend:
    """Vectors that are whole tensors."""

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.dot(a.reshape(-1), b.reshape(-1))

    def norm(self, a: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(a)
        return norm

    def axpy(self, alpha: float | Tensor, a: Tensor, b: Tensor) -> Tensor:
        return alpha * a + b

    def scale(self, alpha: float | Tensor, a: Tensor) -> Tensor:
        return alpha * a

    def zeros_like(self, a: Tensor) -> Tensor:
        return torch.zeros_like(a)

    def randn_like(self, a: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        device = a.device if generator is None else generator.device
        return torch.randn(a.shape, generator=generator, dtype=a.dtype, device=device).to(a.device)

    def rademacher_like(self, a: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        device = a.device if generator is None else generator.device
        bits = torch.randint(0, 2, a.shape, generator=generator, dtype=torch.int8, device=device)
        return bits.to(a.device, a.dtype).mul_(2).sub_(1)

    def inner(self, A: Tensor, B: Tensor) -> Tensor:
        step = max(256, SLAB_ENTRIES // max(A.shape[1], B.shape[1], 1))
        G = torch.zeros(A.shape[1], B.shape[1], dtype=torch.float64, device=A.device)
        for start in range(0, len(A), step):
            G.addmm_(A[start : start + step].double().T, B[start : start + step].double())
        return G.cpu()

    def dots(self, A: Tensor, B: Tensor) -> Tensor:
        step = max(256, SLAB_ENTRIES // max(A.shape[1], 1))
        d = torch.zeros(A.shape[1], dtype=torch.float64, device=A.device)
        for start in range(0, len(A), step):
            d += (A[start : start + step].double() * B[start : start + step].double()).sum(0)
        return d.cpu()

    def rows(self, size: int) -> range | Tensor:
        return range(size)

    def randn(
        self, like: Tensor, columns: Sequence[int], *, size: int, seed: int, role: str
    ) -> Tensor:
        def draw(generator: np.random.Generator, count: int) -> NDArray[Any]:
            return generator.standard_normal(count, dtype=np.float32)

        return drawn(draw, like, columns, self.rows(size), size, seed, role)

    def rademacher(
        self, like: Tensor, columns: Sequence[int], *, size: int, seed: int, role: str
    ) -> Tensor:
        def draw(generator: np.random.Generator, count: int) -> NDArray[Any]:
            random_bytes = np.frombuffer(generator.bytes(-(-count // 8)), np.uint8)
            signs = np.unpackbits(random_bytes, count=count).view(np.int8)
            return cast(NDArray[Any], signs * np.int8(-2) + np.int8(1))

        return drawn(draw, like, columns, self.rows(size), size, seed, role)

    def seed(self, seed: int | None) -> int:
        if seed is None:
            return secrets.randbits(63)
        if seed < 0:
            raise SkerchError(f"A seed is a non-negative integer or None, not {seed}.")
        return int(seed)


class Draw(Protocol):
    """So many independent numbers of one law."""

    def __call__(self, generator: np.random.Generator, count: int, /) -> NDArray[Any]: ...


def drawn(
    draw: Draw,
    like: Tensor,
    columns: Sequence[int],
    rows: range | Tensor,
    size: int,
    seed: int,
    role: str,
) -> Tensor:
    """The given rows of random vectors of `size` entries, as columns (len(rows), b).

    A vector is drawn on the CPU in parts of DRAWN_ROWS rows, each of a stream of its own.
    """
    block = torch.empty(len(columns), len(rows), dtype=like.dtype, device=like.device)
    places = rows.numpy() if isinstance(rows, Tensor) else rows
    parts = range(places[0] // DRAWN_ROWS, places[-1] // DRAWN_ROWS + 1) if len(places) else ()
    for vector, column in zip(block, columns, strict=True):
        for part in parts:
            first = part * DRAWN_ROWS
            numbers = draw(stream(seed, role, column, part), min(DRAWN_ROWS, size - first))
            start, stop = bisect_left(places, first), bisect_left(places, first + len(numbers))
            here = places[start:stop]
            if isinstance(here, range):
                picked = numbers[here.start - first : here.stop - first]
            else:
                picked = numbers[here - first]
            vector[start:stop] = torch.from_numpy(picked)
    return block.T
