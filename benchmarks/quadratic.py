"""A Hessian that costs what is asked for: its products may sleep."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from skerch.jobs.problems import Problem


class Quadratic(torch.nn.Module):
    """L(θ) = θᵀHθ / 2 in n parameters; a product with H takes some seconds more.

    H is symmetric (n, n), or diagonal and given as (n,).
    """

    def __init__(self, H: Tensor, seconds: float):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.ones(len(H), device="cpu"))
        self.register_buffer("H", H, persistent=False)
        self.seconds = seconds

    def forward(self, _: Tensor) -> Tensor:
        theta = _Drowsy.apply(self.theta, self.seconds) if self.seconds else self.theta
        H = self.H.to(theta.dtype)
        return theta @ (H * theta if H.ndim == 1 else H @ theta) / 2


class _Drowsy(torch.autograd.Function):
    """The identity, which a product goes back through twice; each time it sleeps for a half."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # it is the gradient, of which products are taken
            return _Drowsy.apply(gradient, ctx.seconds), None
        time.sleep(ctx.seconds / 2)
        return gradient, None


def make(n: int, seconds: float = 0.0, matrix: str | None = None) -> Problem:
    """The problem of the Hessian in a .npy file `matrix`, by default of diag(1, 1/2 … 1/n).

    `seconds` need `hessian.strategy=loop`, with which they are one product's.
    """

    def model() -> Quadratic:
        H = 1 / np.arange(1.0, n + 1, dtype="float32") if matrix is None else np.load(matrix)
        return Quadratic(torch.from_numpy(H), seconds)

    return Problem(
        model,
        lambda split: TensorDataset(torch.zeros(1, 1, device="cpu")),
        lambda model, batch: model(batch[0]),
    )
