"""Shampoo's factors as an approximation of the Fisher matrix (Morwani et al. 2024)."""

from __future__ import annotations

import torch

from skerch.kronecker.layers import Layer
from skerch.kronecker.methods.base import Evidence, Method, Tensors, add_squares, zero_factors


class Shampoo(Method):
    """S = Σ G Gᵀ and A = Σ Gᵀ G / tr S over the gradients G of examples: tr S ⊗ A is that of F.

    Of rows that are unit vectors, the diagonal of A is kept.
    """

    def zeros(self, layer: Layer, dtype: torch.dtype, device: torch.device) -> Tensors:
        return zero_factors(layer, dtype, device)

    def add(self, sums: Tensors, found: Evidence) -> None:
        S, A = sums["S"], sums["A"]
        if found.layer.indices:
            columns, tokens = found.columns()
            columns = columns.to(S.dtype)
            add_squares(S, columns.flatten(0, 1)[None])
            A[0].index_add_(0, tokens, columns.square().sum((0, 2)))
            return
        for G in found.gradients_in_parts():
            G = G.to(S.dtype).transpose(0, 1)
            add_squares(S, G.mT.flatten(1, 2))
            add_squares(A, G.flatten(1, 2))

    def factors(self, layer: Layer, sums: Tensors, total: float) -> Tensors:
        S, A = sums["S"], sums["A"]
        trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)
        norm = torch.where(trace == 0, 1.0, trace)
        return {"S": S / total, "A": A / norm.view(-1, *[1] * (A.ndim - 1))}
