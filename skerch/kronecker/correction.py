"""Eigenvalues in a given eigenbasis: the curvature of each direction (George et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from skerch.kronecker.eigenbasis import Basis
from skerch.kronecker.layers import Layer
from skerch.kronecker.methods.base import Evidence, Method, Tensors


class Correction(Method):
    """λ_oi = Σ (q_oᵀ G q_i)² over the gradients G of examples, for bases Q_S and Q_A.

    They are what q_o ⊗ q_i has of F, so that the trace is F's, and no other eigenvalues are nearer
    to F in this basis. Where labels are drawn at several positions of an output, G sums their
    scores, and a `FisherOperator` takes each position by itself: the traces are the same in
    expectation only. Where a basis is not whole, its last direction has the mean of the others.

    bases: (S, A) by layer name.
    """

    def __init__(self, bases: Mapping[str, tuple[Basis, Basis]]):
        self.bases = bases

    def zeros(self, layer: Layer, dtype: torch.dtype, device: torch.device) -> Tensors:
        S, A = self.bases[layer.name]
        shape = layer.shape[0], S.values.shape[-1], A.values.shape[-1]
        return {"values": torch.zeros(shape, dtype=dtype, device=device)}

    def add(self, sums: Tensors, found: Evidence) -> None:
        out = sums["values"]
        S, A = (basis.to(out.device, out.dtype) for basis in self.bases[found.layer.name])
        if found.layer.indices:
            columns, tokens = found.columns()
            squares = _squares(columns.to(out.dtype).flatten(0, 1)[None], S)  # (1, b u, R_O)
            out[0].index_add_(1, tokens.repeat(len(columns)), squares[0].T)
            return
        a, g = found.a.to(out.dtype), found.g.to(out.dtype)
        if a.shape[1] == 1:
            left = _squares(g[:, :, 0].permute(2, 0, 1, 3), S).sum(1)  # (groups, n, R_O)
            out.baddbmm_(left.mT, _squares(a[:, 0].permute(1, 0, 2), A))
            return
        _, outputs, inputs = found.layer.shape
        T, whole = a.shape[1], S.is_whole and A.is_whole
        rotate_a, rotate_g = whole and len(g) * outputs >= T, whole and inputs >= T  # by the price
        if rotate_a:
            a = A.coordinates(a.transpose(1, 2)).transpose(1, 2)
        if rotate_g:
            g = S.coordinates(g.transpose(2, 3)).transpose(2, 3)
        for G in Evidence(found.layer, g, lambda: a).gradients_in_parts():
            if whole:
                G = G if rotate_a else A.coordinates(G)
                G = G if rotate_g else S.coordinates(G.mT).mT
                out += G.square_().sum(0)
            else:
                out += _of_gradients(G, S, A)

    def factors(self, layer: Layer, sums: Tensors, total: float) -> Tensors:
        S, A = self.bases[layer.name]
        counts = (S.counts[:, None] * A.counts).to(sums["values"])
        return {"values": sums["values"] / (counts * total)}


def _of_gradients(G: Tensor, S: Basis, A: Basis) -> Tensor:
    """Σ over examples of the squares of coordinates, and of what is left of them."""
    found = _rows_squares(S.coordinates(G.mT).mT, A)
    if S.is_whole:
        return found
    rest = (_rows_squares(G, A).sum(-2, keepdim=True) - found.sum(-2, keepdim=True)).clamp(0)
    return torch.cat([found, rest], dim=-2)


def _squares(X: Tensor, basis: Basis) -> Tensor:
    """The squares (…, R) of the coordinates of rows X (…, d), with what is left as the last."""
    shape = X.shape
    C = basis.coordinates(X.flatten(1, -2)).view(*shape[:-1], -1).square()
    if basis.is_whole:
        return C
    rest = (X.square().sum(-1, keepdim=True) - C.sum(-1, keepdim=True)).clamp(min=0)
    return torch.cat([C, rest], dim=-1)


def _rows_squares(G: Tensor, basis: Basis) -> Tensor:
    """Σ over examples of the squares (groups, rows, R) of rows G (examples, groups, rows, d)."""
    C = basis.coordinates(G).square().sum(0)
    if basis.is_whole:
        return C
    rest = (G.square().sum((0, -1)) - C.sum(-1)).clamp(min=0)
    return torch.cat([C, rest[..., None]], dim=-1)
