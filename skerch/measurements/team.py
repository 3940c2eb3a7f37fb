"""Who shares the streaming passes over an array: one process, or several that a launcher joins.

All members of a team call the same methods in the same order. One of them writes, and sums in a
fixed order, so that results have the same bits whatever the team.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import chain, cycle
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    import h5py
    import torch
    from torch import Tensor

FEW_SLABS = 2  # so few are multiplied without a thread, which would cost more than it saves
MOST_BYTES_AT_ONCE = 2**25  # of slabs that are worked on side by side, unless one has more

T = TypeVar("T")
Range = tuple[int, int]
Rows = Callable[[int, int], "Tensor"]
Work = Callable[["Tensor"], tuple["Tensor", ...]]
Use = Callable[..., None]


class Team(Protocol):
    """The members that work on one array, as one of them sees it."""

    @property
    def writes(self) -> bool:
        """Whether this is the member that writes files."""

    def one(self, compute: Callable[[], T]) -> T:
        """The result of the member that writes, which alone computes it, for every member."""

    def share(self, items: Callable[[], list[T]]) -> list[T]:
        """This member's share of the items that the member that writes lists."""

    def each(
        self, ranges: Sequence[Range], rows: Rows, worker: Callable[[], Work], use: Use
    ) -> None:
        """Have `work(rows(start, stop))` done for each range by some member.

        `worker()` makes a `work` for each thread; it may return the same memory again and again.
        The member that writes calls `use(start, stop, *tensors)` with the results, in order.
        """


def products(
    ranges: Sequence[Range], rows: Rows, worker: Callable[[], Work], whole: Sequence[Range]
) -> Generator[tuple[Tensor, ...], None, None]:
    """`work(rows(start, stop))` for each of `ranges`, in order; the `whole` array may have more.

    Unless the whole array has few, reading a slab, multiplying another and using a result happen at
    the same time. Narrow slabs are multiplied side by side, each with its share of the threads, as
    products of small matrices gain little from many. A result is overwritten once the next one is
    asked for.
    """
    import torch

    threads = torch.get_num_threads()
    pending: deque[Future[tuple[Tensor, ...]]] = deque()
    works: list[Work] = []
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        for number, (start, stop) in enumerate(ranges):
            slab = rows(start, stop)
            if not works:
                few = len(whole) <= FEW_SLABS
                tallest = max(stop - start for start, stop in whole)
                at_once = 1 if few else min(side_by_side(slab, tallest), threads)
                works = [worker() for _ in range(at_once + 1)]
                torch.set_num_threads(max(1, threads // at_once))
                # a new thread multiplies with as many threads as are set only once it has asked
                pool = ThreadPoolExecutor(at_once, initializer=torch.get_num_threads)
                stack.enter_context(pool)
            if few:
                yield works[0](slab)
                continue
            pending.append(pool.submit(works[number % len(works)], slab))
            if len(pending) == len(works):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class Buffers:
    """Memory for as many slabs as `products` has in use, given out in turn.

    Fresh memory for each slab would cost time.
    """

    def __init__(self, dtype: torch.dtype):
        self._dtype = dtype
        self._slabs: Iterator[Tensor] | None = None

    def __call__(self, rows: int, width: int) -> Tensor:
        """An uninitialised slab (rows, width); no later one may be larger than the first."""
        import torch

        if self._slabs is None:
            slab = torch.empty(rows, width, dtype=self._dtype, device="cpu")
            others = (torch.empty_like(slab) for _ in range(side_by_side(slab, rows)))
            self._slabs = cycle(chain([slab], others))  # made as they are asked for
        return next(self._slabs).resize_(rows, width)


def side_by_side(slab: Tensor, rows: int) -> int:
    """How many slabs of `rows` rows, as wide as this one, may be worked on at once."""
    if slab.device.type != "cpu":
        return 1
    return max(1, MOST_BYTES_AT_ONCE // max(1, rows * slab.shape[1] * slab.element_size()))


def write_together(path: Path, fill: Callable[[h5py.File | None], None], team: Team) -> None:
    """Write a file from what all members of a team compute; it appears whole or not at all.

    `fill` gets the file in the member that writes, None in the others. Raises FileError where there
    is no room.
    """
    from skerch.hdf5 import write_hdf5  # h5py takes a while to import

    if team.writes:
        write_hdf5(path, fill)
    else:
        fill(None)


class Alone:
    """A team of one."""

    writes = True

    def one(self, compute: Callable[[], T]) -> T:
        return compute()

    def share(self, items: Callable[[], list[T]]) -> list[T]:
        return items()

    def each(
        self, ranges: Sequence[Range], rows: Rows, worker: Callable[[], Work], use: Use
    ) -> None:
        with closing(products(ranges, rows, worker, ranges)) as results:
            for (start, stop), tensors in zip(ranges, results, strict=True):
                use(start, stop, *tensors)


ALONE = Alone()
