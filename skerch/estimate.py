"""A number with its error, and the ends of a spectrum that follow from its leading eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """What is estimated lies within `value` ± `error`, in 95 of 100."""

    value: float
    error: float

    def __str__(self) -> str:
        value = f"{self.value:#.{self._known}g}".removesuffix(".") if self.value else "0"
        return f"{value} ± {self.error:.2g}"

    @property
    def digits(self) -> str:
        """The value in the digits that are known, five at most; with the error where none is.

        What is said is within one unit of its last digit, if the error holds.
        """
        for known in range(5 if self.value else 0, 0, -1):
            text = f"{self.value:#.{known}g}".removesuffix(".").replace(".e", "e")
            unit = 10.0 ** (math.floor(math.log10(abs(self.value))) - known + 1)
            if abs(float(text) - self.value) + self.error <= unit:
                return text
        return str(self)

    @property
    def _known(self) -> int:
        """The value's digits down to the second one of the error, from two to six."""
        if not self.error:
            return 6
        if not all(map(math.isfinite, self)):
            return 2
        first, last = (math.floor(math.log10(abs(x))) for x in self)
        return max(2, min(6, first - last + 2))


def extremes(values: Sequence[float], bound: Sequence[float]) -> tuple[Estimate, Estimate]:
    """λ_max and λ_min of H, from the k eigenvalues of largest magnitude and their bounds.

    values: λ, (k,), by decreasing magnitude. bound: (k,), as from `eigenvalue_bounds`.

    An end whose sign none of the k has is known only to be nearer to 0 than the last of them: it is
    0 ± (|λ_k| + bound_k).
    """
    pairs = list(map(Estimate, values, bound))
    rest = Estimate(0.0, abs(values[-1]) + bound[-1]) if pairs else Estimate(0.0, 0.0)
    return max([*pairs, rest]), min([*pairs, rest])
