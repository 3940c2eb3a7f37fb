"""What a method sums over examples, and the factors that it makes of these sums."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from skerch.kronecker.layers import Layer

Tensors = dict[str, Tensor]
MOST_ENTRIES = 2**24  # of gradients of examples in memory at a time


@dataclass(frozen=True)
class Evidence:
    """What a batch says of a layer; sums take it in float32 at least.

    n examples, T positions of each, and b scores.
    """

    layer: Layer
    g: Tensor  # slopes (b, n, T, groups, outputs)
    rows: Callable[[], Tensor]

    @cached_property
    def a(self) -> Tensor:
        """Rows (n, T, groups, inputs), or the index of their 1 (n, T)."""
        return self.rows()

    def gradients(self) -> Tensor:
        """G = Σ_t g_t a_tᵀ of each score and example, (b n, groups, outputs, inputs)."""
        b, n, T, groups, outputs = self.g.shape
        if self.layer.indices:
            G = self.g.new_zeros(b, n, self.layer.shape[2], outputs)
            at = self.a[None, :, :, None].expand(b, n, T, outputs)
            return G.scatter_add_(2, at, self.g[:, :, :, 0]).mT.flatten(0, 1)[:, None]
        g = self.g.permute(0, 1, 3, 4, 2).reshape(b, n * groups, outputs, T)
        a = self.a.to(g.dtype).permute(0, 2, 1, 3).reshape(n * groups, T, -1)
        return torch.matmul(g, a).view(b * n, groups, outputs, -1)

    def gradients_in_parts(self) -> Iterator[Tensor]:
        """`gradients` of some examples after others, so that few are in memory at a time."""
        step = max(1, MOST_ENTRIES // (len(self.g) * math.prod(self.layer.shape)))
        for start in range(0, len(self.a), step):
            yield self.part(slice(start, start + step)).gradients()

    def part(self, examples: slice) -> Evidence:
        """Of some examples."""
        return Evidence(self.layer, self.g[:, examples], lambda: self.a[examples])

    def columns(self) -> tuple[Tensor, Tensor]:
        """The nonzero columns (b, u, outputs) of all G, where rows are unit vectors, and which."""
        n, _ = self.a.shape
        V = self.layer.shape[2]
        keys = torch.arange(n, device=self.a.device)[:, None] * V + self.a
        unique, at = torch.unique(keys, return_inverse=True)
        g = self.g.flatten(1, 3)
        columns = g.new_zeros(len(g), len(unique), g.shape[-1]).index_add_(1, at.flatten(), g)
        return columns, unique % V


class Method(ABC):
    """An approximation of the blocks of layers by sums over examples, which add up over parts."""

    @abstractmethod
    def zeros(self, layer: Layer, dtype: torch.dtype, device: torch.device) -> Tensors:
        """The sums over no examples."""

    def add_rows(  # noqa: B027
        self, sums: Tensors, layer: Layer, a: Tensor, weights: Tensor
    ) -> None:
        """Add what is of rows alone, once a batch; nothing, where no method says otherwise."""

    @abstractmethod
    def add(self, sums: Tensors, found: Evidence) -> None:
        """Add what is of slopes."""

    def factors(self, layer: Layer, sums: Tensors, total: float) -> Tensors:
        """The factors of sums over data whose batches weigh `total`.

        Kronecker products have S (groups, outputs, outputs) and A (groups, inputs, inputs), or its
        diagonal (groups, inputs).
        """
        return {name: sum / total for name, sum in sums.items()}


def zero_factors(layer: Layer, dtype: torch.dtype, device: torch.device) -> Tensors:
    """Zeros of the shapes of S and A."""
    groups, outputs, inputs = layer.shape
    A = (groups, inputs) if layer.indices else (groups, inputs, inputs)
    return {
        "S": torch.zeros(groups, outputs, outputs, dtype=dtype, device=device),
        "A": torch.zeros(A, dtype=dtype, device=device),
    }


def add_squares(out: Tensor, X: Tensor, weights: Tensor | None = None) -> None:
    """out += Xᵀ diag(w) X for X (groups, m, d), out (groups, d, d) and w (groups or 1, m)."""
    if weights is None:
        out.baddbmm_(X.mT, X)
    elif len(weights) == 1 and bool((weights == weights[0, :1]).all()):  # so that nothing is copied
        out.baddbmm_(X.mT, X, alpha=float(weights[0, 0]))
    else:
        out.baddbmm_((X * weights[..., None]).mT, X)
