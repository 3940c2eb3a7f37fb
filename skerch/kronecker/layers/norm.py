"""The affine part of norms as a layer: weight ∘ x̂ + bias, for the normalised input x̂."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerch.kronecker.layers.base import Layer


@dataclass(frozen=True)
class NormLayer(Layer):
    """All of its entries as one column: S is the block of the curvature, and A is 1."""

    kind = "norm"
    summed = True

    @classmethod
    def refused(cls, module: Any) -> str | None:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and _of_batch(module):
            return "its module normalises by the statistics of a batch; put the model in eval mode"
        return None

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, sum(self._sizes), 1

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(self.shapes[name]) for name in self.parameters]

    def rows(self, module: Any, x: Tensor) -> Tensor:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        return torch.ones(len(x), 1, 1, 1, dtype=dtype, device=x.device)

    def slopes(self, module: Any, x: Tensor, g: Tensor) -> Tensor:
        """Sums over positions, (…, n, 1, 1, outputs)."""
        g = _by_channel(module, g, g.ndim - x.ndim)
        parts = []
        if self.weight is not None:
            normal = _by_channel(module, _normalised(module, x), 0)
            parts.append(torch.einsum("...ntc,ntc->...nc", g.to(normal.dtype), normal))
        if self.bias is not None:
            parts.append(g.sum(-2))
        return torch.cat(parts, dim=-1)[..., None, None, :]

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        parts = [tensors[n].flatten(tensors[n].ndim - len(self.shapes[n])) for n in self.parameters]
        return torch.cat(parts, dim=-1)[..., None, :, None]

    def tensors(self, matrix: Tensor) -> dict[str, Tensor]:
        column = matrix[..., 0, :, 0]
        parts = zip(self.parameters, torch.split(column, self._sizes, dim=-1), strict=True)
        return {n: part.reshape(*part.shape[:-1], *self.shapes[n]) for n, part in parts}


def _of_batch(module: Any) -> bool:
    return bool(module.training or module.running_mean is None)


def _by_channel(module: Any, x: Tensor, leading: int) -> Tensor:
    """(…, n, T, channels), where channels are the entries that have a weight of their own."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        first = x.ndim - len(module.normalized_shape)
        return x.flatten(first).unsqueeze(leading + 1).flatten(leading + 1, -2)
    return x.unsqueeze(-1).flatten(leading + 2).mT


def _normalised(module: Any, x: Tensor) -> Tensor:
    """x̂, in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(x, list(module.normalized_shape), eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    mean, variance = module.running_mean, module.running_var
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return F.batch_norm(x, mean, variance, eps=module.eps)
    if module.training or mean is None:
        return F.instance_norm(x, eps=module.eps)
    return F.instance_norm(x, mean, variance, use_input_stats=False, eps=module.eps)
