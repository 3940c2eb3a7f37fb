"""The map of a block at once, vectorised by `torch.vmap`: c times the memory."""

from __future__ import annotations

import torch
from torch import Tensor

from skerch.curvature.strategies.linear_map import (
    LinearMap,
    Product,
    StrategyError,
    Tensors,
    first_line,
    quiet_vmap,
)


def prepare(A: LinearMap) -> Product:
    """The vectorised product; it raises StrategyError where an operation cannot be vectorised."""

    def product(block: Tensors) -> tuple[Tensor, ...]:
        try:
            with quiet_vmap():
                products: tuple[Tensor, ...] = torch.vmap(lambda *v: A.function(v))(*block)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            A([v[0] for v in block])  # which may be what cannot be had
            raise StrategyError(
                f"The backward pass of this model cannot be vectorised: {first_line(error)}; set "
                "strategy to loop."
            ) from error
        return products

    return product
