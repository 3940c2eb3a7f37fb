"""Strategies: how the graph of a batch's gradient is applied to a block of vectors.

With g(θ) = ∇L(θ) and its graph in memory, H v = (∂g/∂θ)ᵀ v is one backward pass through that graph
(H is symmetric). A strategy takes the gradients and the parameters and gives a product: a function
of a block of vectors, one tensor of shape (c, *shape) for each parameter, that returns H times
them in the same form. `STRATEGIES` has them by name; a new one is one entry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from reprlib import repr as short

import torch
from torch import Tensor

from skerch.curvature.tape import Tape
from skerch.errors import SkerchError

CHUNK_SIZES = (8, 32, 64, 128, 256)
ROUNDS = 12  # of timing all candidates …
SPELL = 0.3  # … and for so many seconds, as a machine may be slow for a while …
BUDGET = 1.0  # … but none begins after so many
LONGEST = 0.25  # seconds of a chunk: vectors that take long one by one gain little side by side
HOPELESS = 1.25  # times the best of its strategy: no chunk is larger than one that slow

Tensors = Sequence[Tensor]
Product = Callable[[Tensors], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Strategy:
    """What prepares the product, and how many vectors it takes where nothing else is said."""

    prepare: Callable[[Tensors, Tensors], Product]
    chunk_size: int


@dataclass(frozen=True)
class Choice:
    """How products are computed: by which strategy, for how many vectors at once at most."""

    strategy: str
    chunk_size: int
    memory_format: str = "preserve"


def loop(grads: Tensors, params: Tensors) -> Product:
    """One backward pass for each vector: the least memory, and the best for convolutions."""

    def product(block: Tensors) -> tuple[Tensor, ...]:
        columns = [_backward(grads, params, vector) for vector in zip(*block, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*columns, strict=True))

    return product


def batched(grads: Tensors, params: Tensors) -> Product:
    """One backward pass for a block, vectorised by `torch.vmap`: c times the memory.

    The product raises RuntimeError where an operation of the model cannot be vectorised.
    """

    def product(block: Tensors) -> tuple[Tensor, ...]:
        products: tuple[Tensor, ...] = torch.vmap(lambda *v: _backward(grads, params, v))(*block)
        return products

    return product


def tape(grads: Tensors, params: Tensors) -> Product:
    """The backward pass recorded once and run on blocks: c times the memory, best for small nets.

    Raises TapeError, a SkerchError, where the backward pass of a model cannot be recorded.
    """
    return Tape(lambda vector: _backward(grads, params, vector), params)


STRATEGIES = {
    "loop": Strategy(loop, 1),
    "batched": Strategy(batched, 32),
    "tape": Strategy(tape, 64),
}


def check_strategy(strategy: str) -> None:
    """Refuse a strategy that is neither "auto" nor known."""
    if strategy not in ("auto", *STRATEGIES):
        raise SkerchError(
            f"Unknown strategy {short(strategy)}; choose auto, {', '.join(STRATEGIES)}."
        )


def _backward(grads: Tensors, params: Tensors, vector: Tensors) -> tuple[Tensor, ...]:
    """Σ_i (∂g_i/∂θ)ᵀ v_i, with the graph retained and zeros for what it does not reach."""
    return torch.autograd.grad(
        grads, params, vector, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def candidates(block_size: int, strategy: str, chunk_size: int | None) -> list[Choice]:
    """The choices for blocks of `block_size` vectors: what is given, or for "auto" all that differ.

    Strategies that vectorise come in chunks of `chunk_size` vectors, or else of several sizes.
    """
    if strategy != "auto":
        return [Choice(strategy, chunk_size or STRATEGIES[strategy].chunk_size)]
    sizes = sorted({min(s, block_size) for s in ([chunk_size] if chunk_size else CHUNK_SIZES)})
    vectorised = [name for name in STRATEGIES if name != "loop"] if block_size > 1 else []
    return [Choice("loop", 1), *(Choice(name, size) for name in vectorised for size in sizes)]


def fastest(
    choices: Sequence[Choice], grads: Tensors, params: Tensors, vectors: float
) -> tuple[Choice, float]:
    """The fastest choice by the clock, and its seconds a vector; the first is always possible.

    They take turns, so that a machine that is slow for a while is so for all, and with every turn
    it takes less of a distance to the best to drop out. Left out are chunks that would take too
    long, and what a model does not allow. What it takes to prepare a product is shared by
    `vectors` vectors.
    """
    if not grads:
        return choices[0], 0.0
    trials = [_Trial(choices[0], grads, params, vectors)]
    for choice in choices[1:]:
        if trials[0].cost * choice.chunk_size > LONGEST:
            continue
        smaller = [t.cost for t in trials if t.choice.strategy == choice.strategy]
        if smaller and smaller[-1] > HOPELESS * min(smaller):
            continue
        with suppress(Exception):  # whatever a model's own backward pass may raise
            trials.append(_Trial(choice, grads, params, vectors))
    begin = time.perf_counter()
    for turn in count():
        best = min(trials, key=lambda trial: trial.cost)
        trials = [trial for trial in trials if trial.cost <= (1 + 1 / (turn + 1)) * best.cost]
        seconds = time.perf_counter() - begin
        if seconds > (SPELL if turn >= ROUNDS else BUDGET) or (turn >= 2 and len(trials) == 1):
            break
        for trial in trials:
            trial.run()
    best = min(trials, key=lambda trial: trial.cost)
    return best.choice, best.cost


class _Trial:
    """A choice on the clock, once it is warm."""

    def __init__(self, choice: Choice, grads: Tensors, params: Tensors, vectors: float):
        self.choice = choice
        self._block = [p.detach().expand(choice.chunk_size, *p.shape).clone() for p in params]
        prepare = STRATEGIES[choice.strategy].prepare
        prepare(grads, params)([v[:2] for v in self._block])
        start = _now(params[0].device)
        self._product = prepare(grads, params)
        self._preparation = (_now(params[0].device) - start) / vectors
        self._least = float("inf")
        self.run()  # which gets its memory
        self.run()

    @property
    def cost(self) -> float:
        """Seconds a vector, the least so far, with its part of the preparation."""
        return self._least + self._preparation

    def run(self) -> None:
        """Time one chunk."""
        start = _now(self._block[0].device)
        self._product(self._block)
        seconds = _now(self._block[0].device) - start
        self._least = min(self._least, seconds / self.choice.chunk_size)


def _now(device: torch.device) -> float:
    """The time at which the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
