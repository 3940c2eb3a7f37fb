"""What peers' programs share: requests, the clock, and Hessian products by torch alone.

Imports torch and nothing else, so that it runs in every environment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy


def serve(
    load: Callable[[nn.Module, tuple[Tensor, Tensor]], None], **functions: Callable[..., Any]
) -> None:
    """Answer requests [name, arguments], one JSON line each, until there are none."""

    def load_file(path: str) -> None:
        load(*torch.load(path, weights_only=False))

    functions["load"] = load_file
    for line in sys.stdin:
        name, arguments = json.loads(line)
        with redirect_stdout(sys.stderr):
            answer = functions[name](**arguments)
        print(json.dumps(answer), flush=True)


def timer() -> Callable[[], float]:
    """The clock; where one thread works the processor's, which other programs hardly lengthen."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def seconds(work: Callable[[], object]) -> float:
    """The time of one run by the timer."""
    now = timer()
    start = now()
    work()
    return now() - start


def vectors(count: int, size: int) -> Tensor:
    """The same Gaussian vectors (count, size) everywhere."""
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0))


class Gradient:
    """The gradient's graph of the mean cross-entropy of a batch, and products H v with it."""

    def __init__(self, network: nn.Module, batch: tuple[Tensor, Tensor]):
        self.params = list(network.parameters())
        self.sizes = [p.numel() for p in self.params]
        with sdpa_kernel(SDPBackend.MATH):  # the only attention with a second derivative
            loss = cross_entropy(network(batch[0]), batch[1])
        self.grads = torch.autograd.grad(loss, self.params, create_graph=True)

    def loop(self, V: Tensor) -> Tensor:
        """(H Vᵀ)ᵀ for rows V (b, N), one backward pass a vector."""
        return torch.stack([self._backward(v, batched=False) for v in V])

    def batched(self, V: Tensor) -> Tensor:
        """The same in one vectorised backward pass."""
        return self._backward(V, batched=True)

    def _backward(self, V: Tensor, *, batched: bool) -> Tensor:
        parts = [
            part.reshape(*V.shape[:-1], *p.shape)
            for part, p in zip(V.split(self.sizes, dim=-1), self.params, strict=True)
        ]
        found = torch.autograd.grad(
            self.grads, self.params, parts, retain_graph=True, is_grads_batched=batched
        )
        return torch.cat([part.reshape(*V.shape[:-1], -1) for part in found], dim=-1)
