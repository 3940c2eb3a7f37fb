"""The product of a softmax's derivative: u ↦ m (p ∘ u - p (p · u)) at a position, p = softmax(z).

A language model has it at thousands of positions of 10^5 classes, where it costs memory traffic. Of
its back ends, "eager" makes several arrays of the size of z, "compile" is what `torch.compile`
makes of that, and "triton" a kernel that makes none. "auto" is the last one on CUDA, the second
for arrays that are worth a compiler's time (`LONG`), and else the first.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("auto", "eager", "compile", "triton")
LONG = 2**24  # entries of z
COMPILERS = ("c++", "g++", "clang++", "cl")


def softmax_product(z: Tensor, u: Tensor, m: Tensor, dim: int, fused: str = "auto") -> Tensor:
    """m (p ∘ u - p (p · u)) along dimension `dim` of logits z, in the dtype of u.

    z and u have one shape, and m that with 1 in dimension `dim`.
    """
    backend = resolve(fused, z)
    if backend == "eager":
        return eager(z, u, m, dim)
    rows = (x.movedim(dim, -1) for x in (z, u, m))
    flat = [x.reshape(-1, x.shape[-1]) for x in rows]
    product: Tensor = torch.ops.skerch.softmax_product(*flat, backend)
    return product.view(u.movedim(dim, -1).shape).movedim(-1, dim)


def eager(z: Tensor, u: Tensor, m: Tensor, dim: int = -1) -> Tensor:
    """The formula."""
    p = torch.softmax(z, dim, torch.promote_types(z.dtype, torch.float32))
    weighted = p * u
    product: Tensor = (weighted - p * weighted.sum(dim, keepdim=True)) * m
    return product.to(u.dtype)


def resolve(fused: str, z: Tensor) -> str:
    """The back end that a name stands for, on these logits; the kernel is CUDA's, and float32."""
    if fused in ("eager", "compile"):
        return fused
    if z.is_cuda and z.dtype != torch.float64 and find_spec("triton"):
        return "triton"
    if fused == "triton":
        return "compile"
    return "compile" if z.numel() >= LONG and any(map(which, COMPILERS)) else "eager"


@cache
def compiled() -> Any:
    """What `torch.compile` makes of the formula."""
    return torch.compile(eager)


@torch.library.custom_op(
    "skerch::softmax_product",
    mutates_args=(),
    schema="(Tensor z, Tensor u, Tensor m, str backend) -> Tensor",
)
def _softmax_product(z: Tensor, u: Tensor, m: Tensor, backend: str) -> Tensor:
    """Of rows: z (n, classes), u (c n, classes) for c vectors one after the other, m (n, 1)."""
    if backend == "triton":
        from skerch.curvature.losses.triton_kernel import rows_product

        return rows_product(z.contiguous(), u.contiguous(), m.contiguous())
    product: Tensor = compiled()(z, u.view(-1, *z.shape), m)
    return product.view(u.shape)


@_softmax_product.register_fake
def _like(z: Tensor, u: Tensor, m: Tensor, backend: str) -> Tensor:
    return torch.empty_like(u)


@_softmax_product.register_vmap
def _of_a_block(info: Any, dims: Any, z: Tensor, u: Tensor, m: Tensor, backend: str) -> Any:
    """Logits belong to all vectors of a block."""
    block = u.movedim(dims[1], 0)
    product = torch.ops.skerch.softmax_product(z, block.reshape(-1, block.shape[-1]), m, backend)
    return product.view(block.shape), 0
