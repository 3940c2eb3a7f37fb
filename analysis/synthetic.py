"""The metrics of random subspaces: what two subspaces that have nothing in common show.

Subspaces are the span O of a random orthonormal (N, k) matrix, uniformly distributed, or the span B
of the k coordinates of a uniformly random mask. The pairs are O-O, O-B and B-B, over N and over
k / N.

O-O is measured: the columns of a Gaussian matrix are a basis of O. For O-B no row is drawn: of such
a basis, the R of the mask's k rows and that of the N - k others are independent, with squares on
their diagonals that are χ² of n, n - 1, … degrees of freedom for n rows, and normal entries above
(Bartlett 1933). B-B is the intersection of two sets.

A last series has O-B with some shared directions: the rest is as random as in N less these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from skerch.analysis.grassmann import METRICS, PrincipalAngles, from_blocks, principal_angles
from skerch.errors import SkerchError
from skerch.randomness import stream

PAIRS = ("O-O", "O-B", "B-B")
QUANTILES = (0.025, 0.975)
DIMENSIONS = (100, 200, 400)
RATIOS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of k, in common
SHARED_RATIO = 0.1  # k / N of the last series
LARGEST = 10**9  # numbers in a basis (N, k): 8 GB, of which a draw has several


@dataclass(frozen=True)
class Row:
    """A metric of pairs of random subspaces of dimension k of R^N, over independent draws."""

    pair: str  # of PAIRS
    n: int  # N
    k: int
    shared: int  # directions that both have; the others are random
    metric: str  # of METRICS
    draws: int
    median: float
    low: float  # 2.5 % of the draws are below
    high: float  # 2.5 % are above
    mean: float
    standard_error: float  # of the mean
    greatest: float  # that the metric can be
    baseline: float | None  # see `Metric`; None where no closed form is known


def study(
    dimensions: Sequence[int] = DIMENSIONS,
    ratios: Sequence[float] = RATIOS,
    *,
    draws: int = 50,
    seed: int = 0,
) -> list[Row]:
    """Every metric of every pair, for each N of `dimensions` and k / N of `ratios`.

    The series with shared directions is of the largest N. More draws leave the first ones as they
    are. Raises `SkerchError` unless N >= 2, 0 < k / N <= 1, N k <= 10⁹, and draws >= 2.
    """
    if not dimensions or min(dimensions) < 2:
        raise SkerchError(f"Dimensions N are 2 or more, not {list(dimensions)}.")
    if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
        raise SkerchError(f"Ratios k/N are above 0 and at most 1, not {list(ratios)}.")
    n, k = max(dimensions), _rank(max(dimensions), max(*ratios, SHARED_RATIO))
    if n * k > LARGEST:
        raise SkerchError(
            f"A basis of k = {k} directions of N = {n} has N k = {n * k:.3g} numbers, more than "
            f"{LARGEST:.0e}; take smaller dimensions or ratios."
        )
    if draws < 2:
        raise SkerchError(f"Quantiles and standard errors take 2 or more draws, not {draws}.")
    rows = []
    for pair, n in product(PAIRS, sorted({*dimensions})):
        for k in sorted({_rank(n, ratio) for ratio in ratios}):
            rows += _rows(pair, n, k, 0, random_angles(pair, n, k, draws, seed))
    n = max(dimensions)
    k = _rank(n, SHARED_RATIO)
    for shared in dict.fromkeys(_rank(k, share) for share in SHARES):
        rows += _rows("O-B", n, k, shared, shared_angles(n, k, shared, draws, seed))
    return rows


def random_angles(pair: str, n: int, k: int, draws: int, seed: int) -> PrincipalAngles:
    """Principal angles of independent draws of a pair, (draws, k)."""
    generator = stream(seed, "synthetic", PAIRS.index(pair), n, k)
    each = [_draw(pair, n, k, generator) for _ in range(draws)]
    cosines = torch.stack([angles.cosines for angles in each])
    return PrincipalAngles(cosines, torch.stack([angles.sines for angles in each]), (k, k))


def shared_angles(n: int, k: int, shared: int, draws: int, seed: int) -> PrincipalAngles:
    """Principal angles, (draws, k), of O-B that have `shared` directions in common."""
    ones = torch.ones(draws, shared, dtype=torch.float64, device="cpu")
    if shared == k:
        return PrincipalAngles(ones, 1 - ones, (k, k))
    rest = random_angles("O-B", n - shared, k - shared, draws, seed)
    cosines = torch.cat([ones, rest.cosines], dim=1)
    return PrincipalAngles(cosines, torch.cat([1 - ones, rest.sines], dim=1), (k, k))


def _draw(pair: str, n: int, k: int, generator: np.random.Generator) -> PrincipalAngles:
    """Principal angles of one draw of a pair."""
    if pair == "O-O":
        return principal_angles(*(generator.standard_normal((n, k)) for _ in range(2)))
    if pair == "O-B":
        return from_blocks(_triangle(k, k, generator), _triangle(n - k, k, generator), (k, k))
    return principal_angles(*(generator.choice(n, k, replace=False) for _ in range(2)))


def _triangle(rows: int, k: int, generator: np.random.Generator) -> Tensor:
    """R (k, k) of a Gaussian matrix (rows, k); its last rows are 0 where rows < k."""
    m = np.arange(min(rows, k))
    R = np.triu(generator.standard_normal((k, k)), 1)
    R[m, m] = np.sqrt(generator.chisquare(rows - m))
    R[len(m) :] = 0
    return torch.from_numpy(R)


def _rank(n: int, ratio: float) -> int:
    """k of n, at least 1."""
    return max(1, round(ratio * n))


def _rows(pair: str, n: int, k: int, shared: int, angles: PrincipalAngles) -> list[Row]:
    """A row for each metric."""
    rows = []
    for name, metric in METRICS.items():
        values = metric.value(angles)
        low, high = values.quantile(values.new_tensor(QUANTILES)).tolist()
        rows.append(
            Row(
                pair=pair,
                n=n,
                k=k,
                shared=shared,
                metric=name,
                draws=len(values),
                median=float(values.quantile(0.5)),
                low=low,
                high=high,
                mean=float(values.mean()),
                standard_error=float(values.std()) / len(values) ** 0.5,
                greatest=metric.greatest(k, k),
                baseline=metric.baseline(n, k, k) if metric.baseline and not shared else None,
            )
        )
    return rows
