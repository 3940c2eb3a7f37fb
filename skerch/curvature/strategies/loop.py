"""One vector after the other: the least memory, and the best for convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from skerch.curvature.strategies.linear_map import LinearMap, Product, Tensors


def prepare(A: LinearMap) -> Product:
    """The product that applies A to each vector."""

    def product(block: Tensors) -> tuple[Tensor, ...]:
        columns = [A(vector) for vector in zip(*block, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*columns, strict=True))

    return product
