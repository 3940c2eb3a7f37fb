"""A linear map of one vector, and whether a block's products are those of the vectors one by one.

A vector comes in parts, tensors of the shapes of a network's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from skerch.errors import SkerchError
from skerch.rounding import rounding

Tensors = Sequence[Tensor]
Product = Callable[[Tensors], tuple[Tensor, ...]]


class StrategyError(SkerchError):
    """A strategy that cannot compute a map's products, or computes others."""


class DerivativeError(SkerchError):
    """A map that needs a derivative that an operation does not have."""


@dataclass(frozen=True)
class LinearMap:
    """v ↦ A v of vectors v in parts shaped as those of `like`, square.

    `failure` says in a sentence what it means that the function raises RuntimeError, of which the
    first line is put in its place {}.
    """

    function: Product
    like: Tensors
    failure: str = "The curvature's product with a vector cannot be had: {}."

    def __call__(self, vector: Tensors) -> tuple[Tensor, ...]:
        """A v; raises DerivativeError in the place of torch's RuntimeError."""
        try:
            return self.function(vector)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise DerivativeError(self.failure.format(first_line(error))) from error


def compare(strategy: str, A: LinearMap, block: Tensors, products: Tensors) -> None:
    """Refuse products of a block of c vectors that one by one come out otherwise.

    A Σ a_i v_i = Σ a_i A v_i for random a tells of all c at once, at the price of one product.
    """
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(len(block[0]), generator=generator, dtype=torch.float64, device="cpu")
    norms = _norms(block)
    a /= norms.masked_fill(norms == 0, torch.inf)  # a sparse test vector may be zero
    scale = float((a * _norms(products)).norm())
    if not math.isfinite(scale):
        return  # which the caller sees

    def combine(tensors: Tensors) -> list[Tensor]:
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        return [torch.tensordot(a.to(t.device, dtype), t.to(dtype), 1) for t in tensors]

    alone = A([v.to(p.dtype) for v, p in zip(combine(block), A.like, strict=True)])
    error = math.hypot(
        *(float((x - y).norm()) for x, y in zip(combine(products), alone, strict=True))
    )
    if not error <= rounding(A.like[0].dtype) * scale:
        raise StrategyError(
            f"Strategy {strategy} gives other products than one vector after the other, by "
            f"{error / scale:.1g} of their norm: PyTorch vectorises an operation of this model "
            "wrongly. Set strategy to loop, or to auto, which leaves such strategies out."
        )


def _norms(block: Tensors) -> Tensor:
    """The norms (c,) of a block's vectors, in float64 on the CPU."""
    wide = torch.promote_types(block[0].dtype, torch.float32)
    norms = [torch.linalg.vector_norm(t.reshape(len(t), -1), dim=1, dtype=wide) for t in block]
    total: Tensor = torch.stack(norms).double().square().sum(dim=0).sqrt()
    return total.cpu()


def first_line(error: Exception) -> str:
    """What an error says first, without the full stop."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


@contextmanager
def quiet_vmap() -> Iterator[None]:
    """Without vmap's warnings that an operation is slow, of which nobody here can do anything."""
    set_warning = vars(torch._C._functorch)["_set_vmap_fallback_warning_enabled"]
    set_warning(False)
    try:
        yield
    finally:
        set_warning(True)
