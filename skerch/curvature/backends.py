"""Strategies: how the graph of a batch's gradient is applied to a block of vectors.

With g(θ) = ∇L(θ) and its graph in memory, H v = (∂g/∂θ)ᵀ v is one backward pass through that graph
(H is symmetric). A strategy takes the gradients, the parameters and a block of vectors, one tensor
of shape (c, *shape) for each parameter, and returns the products in the same form. `STRATEGIES`
has them by name; a new one is one entry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from reprlib import repr as short

import torch
from torch import Tensor

from skerch.errors import SkerchError

BUDGET = 1.0  # seconds that timing one candidate may take, about


@dataclass(frozen=True)
class Strategy:
    """A block product, and how many vectors it takes at once where nothing else is said."""

    product: Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]
    chunk_size: int


@dataclass(frozen=True)
class Choice:
    """A strategy's name and the most vectors that it is given at once."""

    strategy: str
    chunk_size: int


def loop(
    grads: Sequence[Tensor], params: Sequence[Tensor], block: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """One backward pass for each vector: the least memory, and the best for convolutions."""
    columns = [_backward(grads, params, vector) for vector in zip(*block, strict=True)]
    return tuple(torch.stack(parts) for parts in zip(*columns, strict=True))


def batched(
    grads: Sequence[Tensor], params: Sequence[Tensor], block: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """One vectorised backward pass for the block: c times the memory, the best for small nets.

    Raises RuntimeError where an operation of the model cannot be vectorised.
    """
    products: tuple[Tensor, ...] = torch.vmap(lambda *vector: _backward(grads, params, vector))(
        *block
    )
    return products


STRATEGIES = {"loop": Strategy(loop, 1), "batched": Strategy(batched, 32)}


def check_strategy(strategy: str) -> None:
    """Refuse a strategy that is neither "auto" nor known."""
    if strategy not in ("auto", *STRATEGIES):
        raise SkerchError(
            f"Unknown strategy {short(strategy)}; choose auto, {', '.join(STRATEGIES)}."
        )


def _backward(
    grads: Sequence[Tensor], params: Sequence[Tensor], vector: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Σ_i (∂g_i/∂θ)ᵀ v_i, with the graph retained and zeros for what it does not reach."""
    return torch.autograd.grad(
        grads, params, vector, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def choose(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    block_size: int,
    chunk_size: int | None = None,
) -> Choice:
    """The fastest choice for blocks of `block_size` vectors, by the clock: the least of three runs.

    "batched" is tried in chunks of `chunk_size` vectors, or else of several sizes, of which those
    that would take longer than the budget are left out. Where it raises, "loop" is the choice.
    """
    best = Choice("loop", 1)
    if block_size == 1 or not grads:
        return best
    least = _seconds_per_vector(best, grads, params)
    sizes = (8, 32, 64) if chunk_size is None else (chunk_size,)
    for size in sorted({min(size, block_size) for size in sizes}):
        candidate = Choice("batched", size)
        if least * size > BUDGET:
            break
        try:
            seconds = _seconds_per_vector(candidate, grads, params)
        except RuntimeError:
            break
        if seconds < least:
            best, least = candidate, seconds
    return best


def _seconds_per_vector(choice: Choice, grads: Sequence[Tensor], params: Sequence[Tensor]) -> float:
    block = [p.detach().expand(choice.chunk_size, *p.shape).clone() for p in params]
    start = time.perf_counter()
    least = float("inf")
    for _ in range(3):
        begin = _now(params[0].device)
        STRATEGIES[choice.strategy].product(grads, params, block)
        end = _now(params[0].device)
        least = min(least, end - begin)
        if end - start > BUDGET:
            break
    return least / choice.chunk_size


def _now(device: torch.device) -> float:
    """The time at which the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
