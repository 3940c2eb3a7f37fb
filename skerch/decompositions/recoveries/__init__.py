"""The recoveries by name, and the rounds of measurements that each of them needs.

A recovery is one file of this folder with a function `recover(summary, outer) -> Core`, and one
entry here. This table needs no torch, so that a run can be planned without importing it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from skerch.errors import SkerchError

if TYPE_CHECKING:
    from skerch.decompositions.recoveries.core import Core
    from skerch.measurements.summary import Summary

SPARE = 40  # matvecs beyond outer: mnist_mini's first 20 pairs are then right to five digits

BESIDE = 8  # random vectors beside a start, through which is found what it lacks

Rounds = int | Sequence[int]  # how many, or the matvecs of each


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

    least: int  # the fewest rounds that it can do
    most: int  # the most
    stores_all: bool  # whether every column is stored, or only the first `outer`
    compresses: bool  # whether columns are also compressed by the second sketch operator Ψ

    def each_round(self, rounds: Rounds, outer: int, inner: int, probes: int) -> list[Round]:
        """The rounds in order, `inner` matvecs (and `probes` in the first) in all."""
        if isinstance(rounds, int):
            rounds = split(inner, rounds)
        return [
            Round(
                number,
                count,
                count if self.stores_all else outer,
                probes if number == 1 else 0,
                self.compresses,
            )
            for number, count in enumerate(rounds, start=1)
        ]


RECOVERIES = {
    "nystrom": Recovery(least=1, most=1000, stores_all=True, compresses=False),
    "oversampled": Recovery(least=1, most=1, stores_all=False, compresses=True),
    "hmt": Recovery(least=2, most=2, stores_all=True, compresses=False),
}


def split(inner: int, rounds: int) -> list[int]:
    """The matvecs of each round, as equal as can be, the first ones have more."""
    return [(inner + index) // rounds for index in reversed(range(rounds))]


def default_inner(outer: int, bound: bool = False) -> int:
    """Twice `outer`, or 40 more where that is less: so many find the last pairs of a short list.

    As the `bound` of what a target may take it is four times `outer` and 40.
    """
    return 4 * outer + SPARE if bound else max(2 * outer, outer + SPARE)


def default_rounds(
    recovery: str, outer: int, inner: int, least_columns: int = 1, bound: bool = False
) -> int:
    """Many small rounds, which leave less error for as many matvecs; each is a wait and a pass.

    A round has about √outer columns, a power of two, at least `least_columns`, and there are at
    most 32. All rounds but the last ones have as many, as a smaller round loses directions. Where
    `inner` is the `bound` of a target, they are as small as in the default number of matvecs.
    """
    recipe = _recipe(recovery)
    usual = min(inner, default_inner(outer)) if bound else inner
    columns = max(least_columns, 1 << int(math.log2(max(1, outer)) / 2), -(-usual // 32))
    return max(recipe.least, min(max(2, -(-inner // columns)), inner, recipe.most))


def started_rounds(width: int, inner: int, rounds: int) -> list[int]:
    """The matvecs of each round, where the first multiplies a start of `width` vectors."""
    first = min(max(width + BESIDE, -(-inner // rounds)), inner - rounds + 1)
    return [first, *split(inner - first, rounds - 1)]


def default_started_rounds(width: int, inner: int, rounds: int) -> list[int]:
    """Likewise, with later rounds that are as large as those of `rounds` equal ones."""
    first = started_rounds(width, inner, 2)[0]
    return started_rounds(width, inner, 1 + max(1, (inner - first) * rounds // inner))


def further_rounds(measured: Sequence[int], inner: int, columns: int) -> list[int]:
    """The matvecs of each round of `inner` in all, of which the first rounds are `measured`.

    Further rounds have `columns` each, or as many as the last one that is measured.
    """
    most = min(columns, measured[-1])
    more = inner - sum(measured)
    return [*measured, *[most] * (more // most), *([more % most] if more % most else [])]


def count_rounds(rounds: Rounds) -> int:
    """How many they are; refused where they are no numbers."""
    if isinstance(rounds, int):
        return rounds
    listed = isinstance(rounds, Sequence) and not isinstance(rounds, str)
    if not listed or not all(isinstance(number, int) for number in rounds):
        raise SkerchError(
            f"rounds={rounds!r} must be a number from 1 on, or a list of the matvecs of each round."
        )
    return len(rounds)


def check_sizes(recovery: str, rounds: Rounds, outer: int, inner: int, probes: int) -> None:
    """Refuse what `recovery` cannot do."""
    recipe = _recipe(recovery)
    count = count_rounds(rounds)
    if not recipe.least <= count <= recipe.most:
        raise SkerchError(
            f"Recovery {recovery!r} does not work in {count} rounds; set rounds to "
            f"{recipe.least}{f' to {recipe.most}' if recipe.most > recipe.least else ''}."
        )
    limit = inner // 2 if recovery == "hmt" else inner
    if not 1 <= outer <= limit:
        raise SkerchError(
            f"outer={outer} eigenpairs cannot be had from inner={inner} matvecs by {recovery!r}; "
            f"outer must lie between 1 and {limit}, or inner be larger."
        )
    if inner < count:
        raise SkerchError(
            f"inner={inner} matvecs are too few for {count} rounds; take {count}, or rounds=1."
        )
    if not isinstance(rounds, int) and (
        sum(rounds) != inner or min(rounds) < 1 or sorted(rounds, reverse=True) != list(rounds)
    ):
        raise SkerchError(
            f"rounds={list(rounds)} must be numbers of matvecs that add up to inner={inner} (these "
            f"have {sum(rounds)}), each at least 1 and none above the one before, in whose "
            "products its vectors are found."
        )
    if probes < 2:
        raise SkerchError(
            f"probes={probes} is too few for an error estimate; take 30 (at least 2)."
        )


def _recipe(recovery: str) -> Recovery:
    if recovery not in RECOVERIES:
        known = ", ".join(sorted(RECOVERIES))
        raise SkerchError(f"There is no recovery {recovery!r}; choose one of {known}.")
    return RECOVERIES[recovery]


def check_dimension(size: int, outer: int, inner: int, bound: bool = False) -> None:
    """Refuse more eigenpairs than the dimension N, or more matvecs than that and the default."""
    if outer > size:
        raise SkerchError(
            f"outer={outer} eigenpairs are more than the dimension N={size}; take outer ≤ {size}."
        )
    if inner > max(size, default_inner(outer, bound)):
        raise SkerchError(
            f"inner={inner} matvecs are more than the dimension N={size}; take inner ≤ {size}."
        )


def load(recovery: str) -> Callable[[Summary, int], Core]:
    """The function `recover` of a recovery."""
    solver: Callable[[Summary, int], Core] = import_module(
        f"skerch.decompositions.recoveries.{recovery}"
    ).recover
    return solver
