"""torch.nn.Conv1d, Conv2d and Conv3d as layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from skerch.kronecker.layers.base import Layer


@dataclass(frozen=True)
class ConvLayer(Layer):
    """At each position of the output, each group of channels is W times a patch of the input."""

    kind = "conv"

    def rows(self, module: Any, x: Tensor) -> Tensor:
        """Patches (n, T, groups, inputs), their entries in the order of the weight's."""
        dims = len(module.kernel_size)
        x = F.pad(
            x if x.ndim == dims + 2 else x[None],
            module._reversed_padding_repeated_twice,
            "constant" if module.padding_mode == "zeros" else module.padding_mode,
        )
        for dim, (size, step, apart) in enumerate(
            zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
        ):
            x = x.unfold(dim, apart * (size - 1) + 1, step)[..., ::apart]
        # (n, groups, channels, *positions, *kernel)
        x = x.reshape(len(x), module.groups, -1, *x.shape[2:])
        positions = range(3, 3 + dims)
        x = x.permute(0, *positions, 1, 2, *range(3 + dims, x.ndim))
        a = x.new_ones(*x.shape[: dims + 2], self.shape[2])
        if self.weight is not None:
            inputs = self.shape[2] - (self.bias is not None)
            a[..., :inputs].view_as(x).copy_(x)
        return a.flatten(1, dims)

    def slopes(self, module: Any, x: Tensor, g: Tensor) -> Tensor:
        leading = g.ndim - x.ndim
        if x.ndim == len(module.kernel_size) + 1:
            g = g.unsqueeze(leading)
        g = g.flatten(leading + 2).mT
        return g.reshape(*g.shape[:-1], module.groups, -1)
