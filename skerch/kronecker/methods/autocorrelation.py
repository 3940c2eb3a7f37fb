"""The Fisher matrix's blocks themselves, or what a sketch sees of them."""

from __future__ import annotations

import math
from zlib import crc32

import torch

from skerch.kronecker.layers import Layer
from skerch.kronecker.methods.base import Evidence, Method, Tensors
from skerch.kronecker.operator import DenseBlock
from skerch.sketch_operators import make
from skerch.sketch_operators.base import SketchOperator


class Autocorrelation(Method):
    """C = Σ R vec(G) vec(G)ᵀ Rᵀ = R F Rᵀ over the gradients G of examples.

    R is the identity, or a sketch operator: the block is then Π F Π for the orthogonal projection Π
    onto its rows.

    Args:
        project: rows p of R, for layers of more parameters; None for the whole blocks.
        kind, seed: of the sketch operators, one a layer by its name.
    """

    def __init__(self, project: int | None = None, kind: str = "sparse_sign", seed: int = 0):
        self.project, self.kind, self.seed = project, kind, seed

    def sketch(self, layer: Layer) -> SketchOperator | None:
        """R (p, P) of a layer, where it is projected."""
        size = math.prod(layer.shape)
        if self.project is None or self.project >= size:
            return None
        seed = self.seed + crc32(layer.name.encode())
        return make(self.kind, (self.project, size), seed=seed, role="omega", dtype=torch.float64)

    def zeros(self, layer: Layer, dtype: torch.dtype, device: torch.device) -> Tensors:
        R = self.sketch(layer)
        size = math.prod(layer.shape) if R is None else R.shape[0]
        return {"C": torch.zeros(size, size, dtype=dtype, device=device)}

    def add(self, sums: Tensors, found: Evidence) -> None:
        C, R = sums["C"], self.sketch(found.layer)
        for G in found.gradients_in_parts():
            X = G.flatten(1)
            X = X.to(C.dtype) if R is None else (R @ X.double().T.cpu()).T.to(C)
            C.addmm_(X.T, X)

    def block(self, layer: Layer, factors: Tensors) -> DenseBlock:
        """The block as eigenvectors of F, or of Π F Π."""
        R, C = self.sketch(layer), factors["C"].double()
        if R is None:
            values, vectors = torch.linalg.eigh(C)
            return DenseBlock(layer, values.clamp(min=0), vectors)
        Q, T = torch.linalg.qr(R.rows(0, R.shape[0]).T.to(C))  # Rᵀ = Q T, so C = Tᵀ (Qᵀ F Q) T
        half = torch.linalg.solve_triangular(T.T, C, upper=False)
        inner = torch.linalg.solve_triangular(T.T, half.T, upper=False)
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        values = torch.cat([values.clamp(min=0), values.new_zeros(1)])
        return DenseBlock(layer, values, Q @ vectors)
