"""A Hessian that costs what is asked for: diagonal, its products may sleep."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from skerch.jobs.problems import Problem


class Quadratic(torch.nn.Module):
    """L(θ) = Σ θ_i² / 2i in n parameters; a product with its Hessian takes some seconds more."""

    def __init__(self, n: int, seconds: float):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.ones(n))
        self.register_buffer("curvature", 1 / torch.arange(1.0, n + 1), persistent=False)
        self.seconds = seconds

    def forward(self, _: Tensor) -> Tensor:
        theta = _Drowsy.apply(self.theta, self.seconds) if self.seconds else self.theta
        return (self.curvature * theta**2).sum() / 2


class _Drowsy(torch.autograd.Function):
    """The identity; so is its gradient, whose own gradient sleeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Asleep.apply(gradient, ctx.seconds), None


class _Asleep(torch.autograd.Function):
    """The identity, whose gradient sleeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return gradient, None


def make(n: int, seconds: float = 0.0) -> Problem:
    """The problem; `seconds` need `hessian.strategy=loop`, with which they are one product's."""
    return Problem(
        lambda: Quadratic(n, seconds),
        lambda split: TensorDataset(torch.zeros(1, 1)),
        lambda model, batch: model(batch[0]),
    )
