"""The recoveries by name, and the measurement arrays that each of them needs.

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
    from skerch.decompositions.core import Core
    from skerch.measurements.summary import Summary


@dataclass(frozen=True)
class RoundSize:
    """How many columns one measurement array has."""

    columns: int  # test vectors
    stored: int  # the first of them, whose measurements are stored whole
    probes: int  # held-out Gaussian vectors


@dataclass(frozen=True)
class Recovery:
    """What a recovery measures: in how many rounds, and through which sketches."""

    rounds: tuple[int, ...]  # the numbers of rounds that it can do
    default: int  # the one of them that is taken unless another is asked for
    stores_all: bool  # whether every column is stored, or only the first `outer`
    compresses: bool  # whether columns are also compressed by the second sketch operator Ψ

    def sizes(self, rounds: int, outer: int, inner: int, probes: int) -> list[RoundSize]:
        """The arrays of each round, `inner` matvecs (and `probes`) in all."""
        if rounds == 1:
            return [RoundSize(inner, inner if self.stores_all else outer, probes)]
        columns = [(inner + index) // rounds for index in reversed(range(rounds))]
        return [
            RoundSize(count, count, 0 if index else probes) for index, count in enumerate(columns)
        ]


RECOVERIES = {
    "nystrom": Recovery(rounds=(1, 2, 3, 4), default=2, stores_all=True, compresses=False),
    "oversampled": Recovery(rounds=(1,), default=1, stores_all=False, compresses=True),
    "hmt": Recovery(rounds=(2,), default=2, stores_all=True, compresses=False),
}


def check(recovery: str, rounds: int | None, outer: int, inner: int, probes: int) -> int:
    """Refuse what `recovery` cannot do; the number of rounds, the default one for None."""
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


def check_size(size: int, inner: int) -> None:
    """Refuse more matvecs than the dimension: a dense matrix costs no more than N of them."""
    if inner > size:
        raise SkerchError(
            f"inner={inner} matvecs are more than the dimension N={size}; take inner ≤ {size} "
            "(it is twice outer, unless given)."
        )


def load(recovery: str) -> Callable[[Summary, int], Core]:
    """The solver of a recovery."""
    solver: Callable[[Summary, int], Core] = import_module(
        f"skerch.decompositions.{recovery}"
    ).recover
    return solver
