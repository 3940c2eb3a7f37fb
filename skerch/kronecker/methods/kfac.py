"""K-FAC (Martens and Grosse 2015; of shared weights, Eschenhagen et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from skerch.errors import SkerchError
from skerch.kronecker.layers import Layer
from skerch.kronecker.methods.base import Evidence, Method, Tensors, add_squares, zero_factors

SHARING = ("expand", "reduce")
MANY_POSITIONS = 32  # whose products are large enough to be summed up one by one


class KFAC(Method):
    """S = Σ g gᵀ over scores, examples and positions, A = Σ w a aᵀ / Σ w.

    With `sharing="reduce"` an example is one position, of the mean of its rows and the sum of its
    slopes.
    """

    def __init__(self, sharing: str = "expand"):
        if sharing not in SHARING:
            raise SkerchError(f"sharing={sharing} is unknown; choose {' or '.join(SHARING)}.")
        self.sharing = sharing

    def zeros(self, layer: Layer, dtype: torch.dtype, device: torch.device) -> Tensors:
        weight = torch.zeros((), dtype=dtype, device=device)
        return {**zero_factors(layer, dtype, device), "weight": weight}

    def add_rows(self, sums: Tensors, layer: Layer, a: Tensor, weights: Tensor) -> None:
        A = sums["A"]
        weights = weights.to(A.dtype)
        sums["weight"] += weights.sum()
        if layer.indices:
            if self.sharing == "expand":
                A[0].index_add_(0, a.flatten(), weights.flatten())
            else:
                self._add_reduced_indices(A, a, weights)
            return
        a = a.to(A.dtype)
        if self.sharing == "reduce":
            mass = weights.sum(1)
            shares = weights / mass.masked_fill(mass == 0, 1.0)[:, None]
            a = torch.einsum("nt,ntgi->ngi", shares, a)[:, None]
            weights = mass[:, None]
        add_squares(A, a.permute(2, 0, 1, 3).flatten(1, 2), weights.flatten()[None])

    def _add_reduced_indices(self, A: Tensor, a: Tensor, weights: Tensor) -> None:
        """The diagonal of Σ w ā āᵀ for the means ā of unit vectors."""
        n, V = len(a), A.shape[-1]
        mass = weights.sum(1)
        shares = weights / mass.masked_fill(mass == 0, 1.0)[:, None]
        keys = torch.arange(n, device=a.device)[:, None] * V + a
        unique, at = torch.unique(keys, return_inverse=True)
        means = torch.zeros(len(unique), dtype=A.dtype, device=A.device)
        means.index_add_(0, at.flatten(), shares.flatten())
        A[0].index_add_(0, unique % V, mass[unique // V] * means.square())

    def add(self, sums: Tensors, found: Evidence) -> None:
        g = found.g.to(sums["S"].dtype)
        if self.sharing == "reduce":
            g = g.sum(2, keepdim=True)
        if g.shape[2] < MANY_POSITIONS:
            add_squares(sums["S"], g.permute(3, 0, 1, 2, 4).flatten(1, 3))
            return
        for S, own in zip(sums["S"], g.flatten(0, 1).unbind(2), strict=True):  # by group
            S.addbmm_(own.mT, own)  # which copies no slopes

    def factors(self, layer: Layer, sums: Tensors, total: float) -> Tensors:
        weight = sums["weight"]
        return {"S": sums["S"] / total, "A": sums["A"] / torch.where(weight == 0, 1.0, weight)}
