"""torch.nn.Linear as a layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import Module

from skerch.kronecker.layers.base import Layer


@dataclass(frozen=True)
class LinearLayer(Layer):
    """y = W x + b, for x of any leading dimensions: all but the first are positions."""

    kind = "linear"

    @classmethod
    def refused(cls, module: Module) -> str | None:
        if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
            return "MultiheadAttention reads it without calling its module"
        return None

    def rows(self, module: Module, x: Tensor) -> Tensor:
        return self._augmented(x.reshape(_examples(x), -1, 1, x.shape[-1]))

    def slopes(self, module: Module, x: Tensor, g: Tensor) -> Tensor:
        return g.reshape(*g.shape[: g.ndim - x.ndim], _examples(x), -1, 1, g.shape[-1])


def _examples(x: Tensor) -> int:
    return len(x) if x.ndim > 1 else 1
