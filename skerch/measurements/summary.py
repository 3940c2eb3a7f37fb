"""The summary: the small matrices that stand for a measurement array.

After one streaming pass over the array nothing of N rows is needed any more: every recovery and
every error estimate works on these, in float64, whether the columns lie in memory or in files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skerch.measurements.gram import orthonormalise
from skerch.measurements.range_finder import Fresh
from skerch.measurements.team import ALONE, Rows, Team


@dataclass(frozen=True)
class Summary:
    """Small matrices of Y = H X (N x m) and HZ, for the stored test vectors X and the q probes Z.

    In one round X has the first columns of Ωᵀ. In several it is [Ωᵀ, Q₂, …] with [Q₂, …] = Y' P,
    where Y' has the columns of all rounds but the last and P is the `range_map`. Columns of [Q₂, …]
    whose column of P is zero are fresh random vectors, F, or zero.
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

    @property
    def stored(self) -> int:
        """m, the number of stored columns."""
        return self.P.shape[0]

    @property
    def probe_products(self) -> Tensor:
        """XᵀHZ (m, q), which is YᵀZ as H is symmetric."""
        if self.range_map is None:
            return self.cross[: self.stored, -self.probes :]
        earlier = len(self.range_map)
        of_range = self.range_map.T @ self.gram[:earlier, self.stored :]
        products = torch.cat([self.cross[:, -self.probes :], of_range])
        if self.fresh is not None and self.fresh_products is not None:
            products[self.fresh] = self.fresh_products
        return products

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
    team: Team = ALONE,
) -> Summary:
    """The summary of the array [Y, HZ] with Gram matrix G, whose rows `rows` gives.

    Y has `stored` columns, N = `size` rows and the dtype `dtype`; see `Summary` for the rest.
    """
    basis = orthonormalise(G[:stored, :stored], rows, size, dtype, ordered=False, team=team)
    epsilon = torch.finfo(dtype).eps
    numbers, products = (fresh.numbers, fresh.products) if fresh else (None, None)
    small = cross, norm, epsilon, inner, range_map, numbers, products, quadratic
    return Summary(G, basis.P, basis.R, *small)
