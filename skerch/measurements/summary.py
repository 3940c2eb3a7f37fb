"""The summary: the small matrices that stand for a measurement array.

After one streaming pass over the array nothing of N rows is needed any more: every recovery and
every error estimate works on these, in float64, whether the columns lie in memory or in files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skerch.measurements.gram import balanced
from skerch.measurements.range_finder import Fresh
from skerch.measurements.team import ALONE, Rows, Team


@dataclass(frozen=True)
class Summary:
    """Small matrices of Y = H X (N x m) and HZ, for the stored test vectors X and the q probes Z.

    In one round X has the first columns of Ωᵀ. In several it is [Ωᵀ, Q₂, …] with [Q₂, …] = Y' P,
    where Y' has the columns of all rounds but the last and P is the `range_map`. Columns of [Q₂, …]
    whose column of P is zero are fresh random vectors, F, or zero.

    With a start, an orthonormal basis Q₁ (N x b) whose columns are the first round's test vectors,
    all that is said of Y and Y' here holds for [Q₁, Y] and [Q₁, Y'], and X = [Q₁, Q₂, …] for
    [Q₁, Q₂, …] = [Q₁, Y'] P. Then `cross` and `norm` are empty.
    """

    gram: Tensor  # (m + q, m + q), of [Y, HZ]
    P: Tensor  # (m, r), Y P is orthonormal
    R: Tensor  # (r, m), Y = (Y P) R
    cross: Tensor  # (s₁, m₁ + q), Ω [Y₁, HZ]
    norm: Tensor  # (s₁,), ‖ω_i‖
    epsilon: float  # relative rounding of the stored columns
    inner: Tensor | None = None  # (s₁, s₁), Ψ H Ωᵀ
    range_map: Tensor | None = None  # (m', m - m₁), m' the columns of Y'
    fresh: Tensor | None = None  # (f,) the numbers of F's columns in Y
    fresh_products: Tensor | None = None  # (f, q), FᵀHZ
    quadratic: Tensor | None = None  # (q,), gᵀHg of each probe
    start_probes: Tensor | None = None  # (b, q), Q₁ᵀZ

    @property
    def stored(self) -> int:
        """m, the number of stored columns."""
        return self.P.shape[0]

    @property
    def start(self) -> int:
        """b, the number of columns of Q₁, zero without a start."""
        return 0 if self.start_probes is None else len(self.start_probes)

    @property
    def probe_products(self) -> Tensor:
        """XᵀHZ (m - b, q), which is YᵀZ for the measured columns Y, as H is symmetric."""
        if self.range_map is None:
            return self.cross[: self.stored, -self.probes :]
        earlier = len(self.range_map)
        of_range = self.range_map.T @ self.gram[:earlier, self.stored :]
        products = torch.cat([self.cross[:, -self.probes :], of_range])
        if self.fresh is not None and self.fresh_products is not None:
            products[self.fresh] = self.fresh_products
        return products

    @property
    def column_probes(self) -> Tensor:
        """YᵀZ (m, q) for all columns, those of Q₁ among them."""
        if self.start_probes is None:
            return self.probe_products
        return torch.cat([self.start_probes, self.probe_products])

    @property
    def probes(self) -> int:
        """q, the number of probes."""
        return len(self.gram) - self.stored

    @property
    def projected_probes(self) -> Tensor:
        """QᵀHZ (r, q) for the basis Q = Y P."""
        return self.P.T @ self.gram[: self.stored, self.stored :]


def summarise(
    G: Tensor,
    rows: Rows,
    size: int,
    stored: int,
    dtype: torch.dtype,
    *,
    cross: Tensor,
    norm: Tensor,
    inner: Tensor | None = None,
    range_map: Tensor | None = None,
    fresh: Fresh | None = None,
    quadratic: Tensor | None = None,
    start_probes: Tensor | None = None,
    team: Team = ALONE,
) -> Summary:
    """The summary of the array [Y, HZ] with Gram matrix G, whose rows `rows` gives.

    Y has `stored` columns, N = `size` rows and the dtype `dtype`; see `Summary` for the rest.
    """
    start = 0 if start_probes is None else len(start_probes)
    basis = balanced(G[:stored, :stored], rows, size, dtype, start, ordered=False, team=team)
    epsilon = torch.finfo(dtype).eps
    numbers, products = (fresh.numbers, fresh.products) if fresh else (None, None)
    small = cross, norm, epsilon, inner, range_map, numbers, products, quadratic, start_probes
    return Summary(G, basis.P, basis.R, *small)
