"""The product of a softmax's derivative: u ↦ m (diag p - p pᵀ) u at each position, p = softmax(z).

A language model has it at thousands of positions of 10^5 classes, where memory traffic is what it
costs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_product(z: Tensor, u: Tensor, m: Tensor, dim: int, fused: str = "auto") -> Tensor:
    """m (p ∘ u - p (p · u)) along dimension `dim` of logits z, in the dtype of u."""
    p = torch.softmax(z, dim, torch.promote_types(z.dtype, torch.float32))
    product = p * u
    result: Tensor = (product - p * product.sum(dim, keepdim=True)) * m
    return result.to(u.dtype)
