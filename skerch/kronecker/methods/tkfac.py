"""TK-FAC, which keeps the trace (Gao et al. 2020)."""

from __future__ import annotations

import torch

from skerch.kronecker.layers import Layer
from skerch.kronecker.methods.base import Evidence, Method, Tensors, add_squares, zero_factors


class TKFAC(Method):
    """S = Σ ‖a‖² g gᵀ and A = Σ ‖g‖² a aᵀ / Σ ‖a‖² ‖g‖² over positions.

    tr S ⊗ A is that of F where no weights are shared.
    """

    def zeros(self, layer: Layer, dtype: torch.dtype, device: torch.device) -> Tensors:
        norm = torch.zeros(layer.shape[0], dtype=dtype, device=device)
        return {**zero_factors(layer, dtype, device), "norm": norm}

    def add(self, sums: Tensors, found: Evidence) -> None:
        S, A = sums["S"], sums["A"]
        g = found.g.to(S.dtype).permute(3, 0, 1, 2, 4).flatten(2, 3)  # (groups, b, n T, outputs)
        squares = g.square().sum((1, 3))  # (groups, n T)
        if found.layer.indices:
            add_squares(S, g.flatten(1, 2))
            A[0].index_add_(0, found.a.flatten(), squares[0])
            sums["norm"] += squares.sum(1)
            return
        a = found.a.to(A.dtype).permute(2, 0, 1, 3).flatten(1, 2)
        norms = a.square().sum(2)
        add_squares(S, g.flatten(1, 2), norms.repeat(1, g.shape[1]))
        add_squares(A, a, squares)
        sums["norm"] += (norms * squares).sum(1)

    def factors(self, layer: Layer, sums: Tensors, total: float) -> Tensors:
        norm = torch.where(sums["norm"] == 0, 1.0, sums["norm"])
        A = sums["A"]
        return {"S": sums["S"] / total, "A": A / norm.view(-1, *[1] * (A.ndim - 1))}
