"""The Kronecker product that is nearest to the Fisher matrix (Van Loan and Pitsianis 1993)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from skerch.kronecker.layers import Layer
from skerch.kronecker.methods.base import Evidence, Method, Tensors, add_squares


class Nearest(Method):
    """One pass of alternating least squares for ‖F - S ⊗ A‖_F, the power method on F rearranged.

    Given A, the best S is Σ G A Gᵀ / ‖A‖², and given S, the best A is Σ Gᵀ S G / ‖S‖², over the
    gradients G of examples: both are positive semidefinite. Passes take turns, from A = I on, and
    the error ‖F‖² - ‖S‖² ‖A‖² falls with each: factors have `norms`, ‖S‖ ‖A‖ after each so far.

    Args:
        before: factors of each layer after the pass before, by layer name; None for the first one.
        number: of this pass, from 1: odd ones are for S.
    """

    def __init__(self, before: Mapping[str, Tensors] | None = None, number: int = 1):
        self.before, self.number = before, number

    def zeros(self, layer: Layer, dtype: torch.dtype, device: torch.device) -> Tensors:
        groups, outputs, inputs = layer.shape
        if self.number % 2:
            return {"S": torch.zeros(groups, outputs, outputs, dtype=dtype, device=device)}
        A = (groups, inputs) if layer.indices else (groups, inputs, inputs)
        return {"A": torch.zeros(A, dtype=dtype, device=device)}

    def add(self, sums: Tensors, found: Evidence) -> None:
        (out,) = sums.values()
        before = {} if self.before is None else self.before[found.layer.name]
        other = before.get("A" if self.number % 2 else "S")
        if other is not None:
            other = other.to(out)
        if found.layer.indices:
            columns, tokens = found.columns()
            columns = columns.to(out.dtype)
            if self.number % 2:
                w = None if other is None else other[0, tokens].repeat(len(columns))[None]
                add_squares(out, columns.flatten(0, 1)[None], w)
            elif other is not None:
                out[0].index_add_(0, tokens, ((columns @ other[0]) * columns).sum((0, 2)))
            return
        for G in found.gradients_in_parts():
            G = G.to(out.dtype)
            if self.number % 2:
                G = G.mT
            product = G if other is None else other @ G
            left = product.permute(1, 3, 0, 2).flatten(2, 3)
            out.baddbmm_(left, G.permute(1, 0, 2, 3).flatten(1, 2))

    def factors(self, layer: Layer, sums: Tensors, total: float) -> Tensors:
        ((name, found),) = sums.items()
        other = {} if self.before is None else dict(self.before[layer.name])
        if not other:
            _, _, inputs = layer.shape
            A = torch.ones(layer.shape[0], inputs, dtype=found.dtype, device=found.device)
            other = {"A": A if layer.indices else A.diag_embed(), "norms": A.new_zeros(len(A), 0)}
        given = other["A" if name == "S" else "S"].to(found)
        norm = given.square().flatten(1).sum(1)
        norm = torch.where(norm == 0, 1.0, norm).view(-1, *[1] * (found.ndim - 1))
        if found.ndim == 3:
            found = (found + found.mT) / 2
        found = found / (norm * total)
        now = found.flatten(1).norm(dim=1) * given.flatten(1).norm(dim=1)
        norms = torch.cat([other["norms"].to(now), now[:, None]], dim=1)
        return {**other, name: found, "norms": norms}
