"""The fastest of the strategies by the clock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count

import torch
from torch import Tensor

from skerch.curvature.strategies import Choice, prepare
from skerch.curvature.strategies.linear_map import LinearMap, compare

ROUNDS = 12  # of timing all candidates …
SPELL = 0.3  # … and for so many seconds, as a machine may be slow for a while …
BUDGET = 1.0  # … but none begins after so many
LONGEST = 0.25  # seconds of a chunk: vectors that take long one by one gain little side by side
HOPELESS = 1.25  # times the best of its strategy: no chunk is larger than one that slow


def fastest(choices: Sequence[Choice], A: LinearMap, vectors: float) -> tuple[Choice, float]:
    """The fastest choice by the clock, and its seconds a vector; the first is always possible.

    They take turns, so that a machine that is slow for a while is so for all, and with every turn
    it takes less of a distance to the best to drop out. Left out are chunks that would take too
    long, and what a model does not allow. What it takes to prepare a product is shared by
    `vectors` vectors.
    """
    if not A.like:
        return choices[0], 0.0
    trials = [_Trial(choices[0], A, vectors)]
    for choice in choices[1:]:
        if trials[0].cost * choice.chunk_size > LONGEST:
            continue
        smaller = [t.cost for t in trials if t.choice.strategy == choice.strategy]
        if smaller and smaller[-1] > HOPELESS * min(smaller):
            continue
        with suppress(Exception):  # whatever a model's own backward pass may raise
            trials.append(_Trial(choice, A, vectors))
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

    def __init__(self, choice: Choice, A: LinearMap, vectors: float):
        self.choice = choice
        generator = torch.Generator(A.like[0].device).manual_seed(0)
        self._block = [
            torch.randn(
                (choice.chunk_size, *p.shape), generator=generator, dtype=p.dtype, device=p.device
            )
            for p in A.like
        ]
        prepare(choice.strategy, A)([v[:2] for v in self._block])
        start = _now(A.like[0].device)
        self._product = prepare(choice.strategy, A)
        self._preparation = (_now(A.like[0].device) - start) / vectors
        self._least = float("inf")
        products = self.run()  # which gets its memory
        if choice.strategy != "loop":
            compare(choice.strategy, A, self._block, products)
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
