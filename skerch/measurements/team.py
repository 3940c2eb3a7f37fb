"""Who shares the streaming passes over an array: one process, or several that a launcher joins.

All members of a team call the same methods in the same order. One of them writes, and sums in a
fixed order, so that results have the same bits whatever the team.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Range = tuple[int, int]
Work = Callable[[int, int], tuple["Tensor", ...]]
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

    def each(self, ranges: Iterable[Range], work: Work, use: Use) -> None:
        """Have `work(start, stop)` done for each range by some member.

        The member that writes calls `use(start, stop, *tensors)` with the results, in order.
        """


class Alone:
    """A team of one."""

    writes = True

    def one(self, compute: Callable[[], T]) -> T:
        return compute()

    def share(self, items: Callable[[], list[T]]) -> list[T]:
        return items()

    def each(self, ranges: Iterable[Range], work: Work, use: Use) -> None:
        for start, stop in ranges:
            use(start, stop, *work(start, stop))


ALONE = Alone()
