"""How many rounds are enough: eigenpairs are judged as rounds go on, until they are as asked for.

`pairs: t` is reached once ‖H w_i - λ_i w_i‖ ≤ t |λ_i| for each of the k pairs, by its bound (see
`pair_bounds` in `skerch.a_posteriori`), which is how ARPACK, SciPy's eigsh, takes its `tol`.

`residual: c` is reached once ‖H - H_k‖_F is estimated at no more than c times the best residual of
rank k, whose square is ‖H‖_F² - Σ_{i≤k} λ_i(H)². The sum is not known. A part of it is: the later
rounds' test vectors X' are orthonormal, so that the k largest eigenvalues of (HX')ᵀHX' have a sum

    s ≤ Σ_{i≤k} λ_i(H)²,

which only grows as X' does (Ky Fan). What it still lacks is taken to be twice what it has grown by
since a fifth fewer matvecs were spent. That is no bound: it holds where each such growth is at most
two thirds of the one before, as it is once all k are in sight. docs/theory.md has how true it is.

This module imports torch only to judge, so that a run can be planned without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from skerch.errors import SkerchError

if TYPE_CHECKING:
    from torch import Tensor

    from skerch.decompositions.solve import Solution
    from skerch.measurements.summary import Summary

GROWTH = 1.25  # of the matvecs, over which the growth of s is taken
STILL = 2.0  # times this growth is what s is taken to lack
SPARE = 10  # vectors in X' beyond `outer` before that: with fewer, a pair may be out of sight
BETWEEN = 1.1  # growth of the matvecs from one judgement to the next


@dataclass(frozen=True)
class Judgement:
    """What `matvecs` came to, the probes not counted."""

    matvecs: int
    residual: float | None  # estimated, over the best of its rank; None: it cannot be told yet
    pairs: float  # the largest bound of ‖H w_i - λ_i w_i‖ / |λ_i|
    reached: bool


@dataclass(frozen=True)
class Target:
    """What is asked for: one of the two."""

    residual: float | None = None  # ‖H - H_k‖_F over the best of rank k, at most
    pairs: float | None = None  # ‖H w_i - λ_i w_i‖ over |λ_i|, at most, for each pair

    @classmethod
    def of(cls, asked: Mapping[str, float]) -> Target:
        """The target of a mapping; raises SkerchError for what is none."""
        if not isinstance(asked, Mapping) or asked.keys() not in ({"residual"}, {"pairs"}):
            raise SkerchError(
                f"target is {asked!r}; it has one key, residual or pairs, as in "
                "{residual: 1.05} or {pairs: 1e-3}."
            )
        ((key, value),) = asked.items()
        number = isinstance(value, int | float)
        if key == "residual" and not (number and 1 < value < math.inf):
            raise SkerchError(
                f"target.residual is {value!r}; it is over the best residual, so a number above 1, "
                "as 1.05."
            )
        if key == "pairs" and not (number and 0 < value < 1):
            raise SkerchError(
                f"target.pairs is {value!r}; it is relative to |λ_i|, so a number between 0 and 1, "
                "as 1e-3."
            )
        return cls(**{key: float(value)})

    def check(self, recovery: str, columns: Sequence[int], outer: int) -> None:
        """Refuse a recovery, or rounds, of which none but the last is judged."""
        if recovery != "nystrom":
            raise SkerchError(f"A target is for recovery nystrom, not {recovery}; set one back.")
        if not judged(columns[:-1], outer):
            raise SkerchError(
                f"The target cannot be judged before the last of rounds={list(columns)}: that "
                f"takes {outer + SPARE} matvecs in rounds after the first, and then a quarter more "
                "of all. Take smaller rounds, or a larger inner."
            )

    def judge(
        self, summary: Summary, solution: Solution, columns: Sequence[int], outer: int
    ) -> Judgement:
        """What the rounds of so many `columns`, which have this summary and solution, came to."""
        from skerch.a_posteriori import pair_bounds

        rho = pair_bounds(solution.pair_residual, summary.probes)
        pairs = float((rho / solution.eigenvalues.abs()).max()) if len(rho) else 0.0
        residual = _over_best(summary, solution, columns, outer)
        reached = (
            pairs <= self.pairs
            if self.pairs is not None
            else residual is not None and residual <= (self.residual or 1)
        )
        return Judgement(sum(columns), residual, pairs, reached)


def judged(columns: Sequence[int], outer: int) -> set[int]:
    """The numbers of the rounds of so many `columns` after which they are judged.

    They are once the growth of s is known, and then whenever the matvecs have grown by a tenth, as
    a judgement takes as long as the final solution.
    """
    last, numbers = 0, set()
    for number, spent in enumerate(accumulate(columns), start=1):
        if spent >= BETWEEN * last and _earlier(columns[:number], outer) is not None:
            last = spent
            numbers.add(number)
    return numbers


def _earlier(columns: Sequence[int], outer: int) -> int | None:
    """The matvecs before the last fifth, or more of them; None where X' was too small."""
    spent = list(accumulate(columns))
    least = spent[0] + outer + SPARE
    return max((m for m in spent if m >= least and m * GROWTH <= spent[-1]), default=None)


def _over_best(
    summary: Summary, solution: Solution, columns: Sequence[int], outer: int
) -> float | None:
    """The estimated residual over the best; 1 where both are rounding, None if it is not known."""
    from skerch.a_posteriori import SQUARE_ROUNDING

    earlier = _earlier(columns, outer)
    if earlier is None:
        return None
    now = _known_energy(summary, columns[0], sum(columns), outer)
    missing = STILL * (now - _known_energy(summary, columns[0], earlier, outer))
    whole, left = (float(solution.residual[i]) ** 2 for i in (0, -1))
    rounding = max(SQUARE_ROUNDING, 10 * summary.epsilon) * whole
    if left <= rounding:
        return 1.0 if missing <= rounding else None
    best = whole - now - missing
    return max(1.0, math.sqrt(left / best)) if best > rounding else None


def _known_energy(summary: Summary, start: int, stop: int, count: int) -> float:
    """s: the `count` largest eigenvalues' sum of the Gram matrix of columns [start, stop) of Y.

    Fresh vectors' are left out, as X' may not be orthogonal to them.
    """
    import torch

    kept: Tensor = torch.arange(start, stop, device=summary.gram.device)
    if summary.fresh is not None:
        kept = kept[~torch.isin(kept, summary.fresh)]
    energies = torch.linalg.eigvalsh(summary.gram[kept][:, kept])
    return float(energies[-count:].sum())
