"""torch.nn.Embedding as a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from skerch.kronecker.layers.base import Layer


@dataclass(frozen=True)
class EmbeddingLayer(Layer):
    """y = Wᵀ e_i for an index i: A is diagonal. The index `padding_idx` has no row."""

    kind = "embedding"
    transposed = True
    indices = True

    @classmethod
    def refused(cls, module: Any) -> str | None:
        if module.max_norm is not None:
            return "its module changes it in the forward pass (max_norm)"
        if module.scale_grad_by_freq:
            return "its gradient is not that of the loss (scale_grad_by_freq)"
        return "its gradient is sparse" if module.sparse else None

    def rows(self, module: Any, x: Tensor) -> Tensor:
        return x.reshape(len(x) if x.ndim else 1, -1)

    def slopes(self, module: Any, x: Tensor, g: Tensor) -> Tensor:
        if module.padding_idx is not None:
            g = g.masked_fill((x == module.padding_idx)[..., None], 0)
        leading = g.ndim - 1 - x.ndim
        return g.reshape(*g.shape[:leading], len(x) if x.ndim else 1, -1, 1, g.shape[-1])

    def counted(self, module: Any, x: Tensor) -> Tensor:
        rows = self.rows(module, x)
        return rows != (-1 if module.padding_idx is None else module.padding_idx)
