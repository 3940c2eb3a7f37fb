"""The recoveries by name, and the rounds of measurements that each of them needs.

A recovery is one file of this folder with a function `recover(summary, outer) -> Core`, and one
entry here. This table needs no torch, so that a run can be planned without importing it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from skerch.errors import SkerchError

if TYPE_CHECKING:
    from skerch.decompositions.recoveries.core import Core
    from skerch.measurements.summary import Summary


@dataclass(frozen=True)
class Round:
    """One round's measurement array: those fields of its manifest that the recovery decides."""

    round: int  # its number, from 1 on
    columns: int  # test vectors
    stored: int  # the first of them, whose measurements are stored whole
    probes: int  # held-out Gaussian vectors
    compresses: bool  # whether columns are also compressed by the second sketch operator Ψ

    def count_blocks(self, block_size: int) -> int:
        """The number of blocks of the array, before its N is known."""
        counts = self.stored, self.columns - self.stored, self.probes
        return sum(-(-count // block_size) for count in counts)


@dataclass(frozen=True)
class Recovery:
    """What a recovery measures: in how many rounds, and through which sketches."""

    rounds: tuple[int, ...]  # numbers of rounds that it can do
    default: int  # the number of rounds where none is asked for
    stores_all: bool  # whether every column is stored, or only the first `outer`
    compresses: bool  # whether columns are also compressed by the second sketch operator Ψ

    def each_round(self, rounds: int, outer: int, inner: int, probes: int) -> list[Round]:
        """The rounds in order, `inner` matvecs (and `probes` in the first) in all."""
        columns = [(inner + index) // rounds for index in reversed(range(rounds))]
        return [
            Round(
                number,
                count,
                count if self.stores_all else outer,
                probes if number == 1 else 0,
                self.compresses,
            )
            for number, count in enumerate(columns, start=1)
        ]


RECOVERIES = {
    "nystrom": Recovery(rounds=(1, 2, 3, 4), default=2, stores_all=True, compresses=False),
    "oversampled": Recovery(rounds=(1,), default=1, stores_all=False, compresses=True),
    "hmt": Recovery(rounds=(2,), default=2, stores_all=True, compresses=False),
}


def check_sizes(recovery: str, rounds: int | None, outer: int, inner: int, probes: int) -> int:
    """Refuse sizes that a recovery cannot do; returns `rounds`, or its default number for None."""
    if recovery not in RECOVERIES:
        known = ", ".join(sorted(RECOVERIES))
        raise SkerchError(f"There is no recovery {recovery!r}; choose one of {known}.")
    recipe = RECOVERIES[recovery]
    rounds = recipe.default if rounds is None else rounds
    if rounds not in recipe.rounds:
        raise SkerchError(
            f"Recovery {recovery!r} does not work in {rounds} rounds; "
            f"set rounds to {' or '.join(map(str, recipe.rounds))}."
        )
    limit = inner // 2 if recovery == "hmt" else inner
    if not 1 <= outer <= limit:
        raise SkerchError(
            f"outer={outer} eigenpairs cannot be had from inner={inner} matvecs by {recovery!r}; "
            f"outer must lie between 1 and {limit}."
        )
    if inner < rounds:
        raise SkerchError(
            f"inner={inner} matvecs are too few for {rounds} rounds; take {rounds}, or rounds=1."
        )
    if probes < 2:
        raise SkerchError(
            f"probes={probes} is too few for an error estimate; take 30 (at least 2)."
        )
    return rounds


def check_dimension(size: int, inner: int) -> None:
    """Refuse more matvecs than the dimension: a dense matrix costs no more than N of them."""
    if inner > size:
        raise SkerchError(
            f"inner={inner} matvecs are more than the dimension N={size}; take inner ≤ {size} "
            "(it is twice outer, unless given)."
        )


def load(recovery: str) -> Callable[[Summary, int], Core]:
    """The function `recover` of a recovery."""
    solver: Callable[[Summary, int], Core] = import_module(
        f"skerch.decompositions.recoveries.{recovery}"
    ).recover
    return solver
