"""Who shares the streaming passes over an array: one process, or several that a launcher joins.

All members of a team call the same methods in the same order. One of them writes, and sums in a
fixed order, so that results have the same bits whatever the team.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

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
        """What the member that writes computes, for all."""

    def share(self, items: Callable[[], list[T]]) -> list[T]:
        """Those of the items (that the member that writes finds) which this member is to do."""

    def each(self, ranges: Sequence[Range], rows: Rows, work: Work, use: Use) -> None:
        """Have `work(rows(start, stop))` done for each range by some member.

        The member that writes calls `use(start, stop, *tensors)` with the results, in order. What
        `work` returns may be overwritten by its next call, what `rows` returns by the next but one.
        """


def ahead(rows: Rows, ranges: Sequence[Range]) -> Generator[Tensor, None, None]:
    """The rows of each range; the next ones are read by a thread while those before are in use."""
    with ThreadPoolExecutor(1) as reader:
        reading: Future[Tensor] | None = None
        for start, stop in ranges:
            following = reader.submit(rows, start, stop)
            if reading is not None:
                yield reading.result()
            reading = following
        if reading is not None:
            yield reading.result()


class Alone:
    """A team of one."""

    writes = True

    def one(self, compute: Callable[[], T]) -> T:
        return compute()

    def share(self, items: Callable[[], list[T]]) -> list[T]:
        return items()

    def each(self, ranges: Sequence[Range], rows: Rows, work: Work, use: Use) -> None:
        with closing(ahead(rows, ranges)) as slabs:
            for (start, stop), slab in zip(ranges, slabs, strict=True):
                use(start, stop, *work(slab))


ALONE = Alone()
