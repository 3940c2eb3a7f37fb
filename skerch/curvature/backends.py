"""Strategies: how the graph of a batch's gradient is applied to a block of vectors.

With g(θ) = ∇L(θ) and its graph in memory, H v = (∂g/∂θ)ᵀ v is one backward pass through that graph
(H is symmetric). A strategy takes the gradients and the parameters and gives a product: a function
of a block of vectors, one tensor of shape (c, *shape) for each parameter, that returns H times
them in the same form. `STRATEGIES` has them by name; a new one is one entry.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from reprlib import repr as short

import torch
from torch import Tensor

from skerch.curvature.tape import Tape
from skerch.errors import SkerchError
from skerch.rounding import rounding

CHUNK_SIZES = (8, 32, 64, 128, 256)
ROUNDS = 12  # of timing all candidates …
SPELL = 0.3  # … and for so many seconds, as a machine may be slow for a while …
BUDGET = 1.0  # … but none begins after so many
LONGEST = 0.25  # seconds of a chunk: vectors that take long one by one gain little side by side
HOPELESS = 1.25  # times the best of its strategy: no chunk is larger than one that slow

Tensors = Sequence[Tensor]
Product = Callable[[Tensors], tuple[Tensor, ...]]


class StrategyError(SkerchError):
    """A strategy that cannot compute a model's products, or computes others."""


class DerivativeError(SkerchError):
    """A loss that cannot be differentiated twice."""


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

    The product raises StrategyError where an operation of the model cannot be vectorised.
    """

    def product(block: Tensors) -> tuple[Tensor, ...]:
        try:
            with _quiet_vmap():
                products: tuple[Tensor, ...] = torch.vmap(lambda *v: _grad(grads, params, v))(
                    *block
                )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _backward(grads, params, [v[0] for v in block])  # which may be what cannot be had
            raise StrategyError(
                f"The backward pass of this model cannot be vectorised: {_first_line(error)}; set "
                "strategy to loop."
            ) from error
        return products

    return product


def tape(grads: Tensors, params: Tensors) -> Product:
    """The backward pass recorded once and run on blocks: c times the memory, best for small nets.

    Raises TapeError, a SkerchError, where the backward pass of a model cannot be recorded.
    """
    with _quiet_vmap():
        recorded = Tape(lambda vector: _backward(grads, params, vector), params)

    def product(block: Tensors) -> tuple[Tensor, ...]:
        with _quiet_vmap():
            return recorded(block)

    return product


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


def compare(
    strategy: str, grads: Tensors, params: Tensors, block: Tensors, products: Tensors
) -> None:
    """Refuse products of a block of c vectors that one by one come out otherwise.

    H Σ a_i v_i = Σ a_i H v_i for random a tells of all c at once, at the price of one product.
    """
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(len(block[0]), generator=generator, dtype=torch.float64, device="cpu")
    a /= _norms(block).clamp(min=1e-300)
    scale = float((a * _norms(products)).norm())
    if not math.isfinite(scale):
        return  # which the caller sees

    def combine(tensors: Tensors) -> list[Tensor]:
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        return [torch.tensordot(a.to(t.device, dtype), t.to(dtype), 1) for t in tensors]

    alone = _backward(
        grads, params, [v.to(p.dtype) for v, p in zip(combine(block), params, strict=True)]
    )
    error = math.hypot(
        *(float((x - y).norm()) for x, y in zip(combine(products), alone, strict=True))
    )
    if not error <= rounding(params[0].dtype) * scale:
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


def _backward(grads: Tensors, params: Tensors, vector: Tensors) -> tuple[Tensor, ...]:
    """Σ_i (∂g_i/∂θ)ᵀ v_i, with the graph retained and zeros for what it does not reach.

    Raises DerivativeError where an operation has no second derivative.
    """
    try:
        return _grad(grads, params, vector)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise DerivativeError(
            f"This model's loss cannot be differentiated twice: {_first_line(error)}. Replace that "
            "operation by others with the same values, or sketch the rest of the network by "
            "param_filter."
        ) from error


def _grad(grads: Tensors, params: Tensors, vector: Tensors) -> tuple[Tensor, ...]:
    products: tuple[Tensor, ...] = torch.autograd.grad(
        grads, params, vector, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return products


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


@contextmanager
def _quiet_vmap() -> Iterator[None]:
    """Without vmap's warnings that an operation is slow, of which nobody here can do anything."""
    set_warning = vars(torch._C._functorch)["_set_vmap_fallback_warning_enabled"]
    set_warning(False)
    try:
        yield
    finally:
        set_warning(True)


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
        generator = torch.Generator(params[0].device).manual_seed(0)
        self._block = [
            torch.randn(
                (choice.chunk_size, *p.shape), generator=generator, dtype=p.dtype, device=p.device
            )
            for p in params
        ]
        prepare = STRATEGIES[choice.strategy].prepare
        prepare(grads, params)([v[:2] for v in self._block])
        start = _now(params[0].device)
        self._product = prepare(grads, params)
        self._preparation = (_now(params[0].device) - start) / vectors
        self._least = float("inf")
        products = self.run()  # which gets its memory
        if choice.strategy != "loop":
            compare(choice.strategy, grads, params, self._block, products)
        self.run()

    @property
    def cost(self) -> float:
        """Seconds a vector, the least so far, with its part of the preparation."""
        return self._least + self._preparation

    def run(self) -> tuple[Tensor, ...]:
        """Time one chunk; its products."""
        start = _now(self._block[0].device)
        products = self._product(self._block)
        seconds = _now(self._block[0].device) - start
        self._least = min(self._least, seconds / self.choice.chunk_size)
        return products


def _now(device: torch.device) -> float:
    """The time at which the device has done what it was given.

    One thread's is the processor's: what else the machine does would choose.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.thread_time()
    return time.perf_counter()
