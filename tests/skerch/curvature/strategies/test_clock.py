"""The strategy "auto" is the fastest one of those that can serve."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from skerch.curvature import HessianOperator, strategies
from skerch.curvature.dense import dense_hessian
from skerch.curvature.strategies import clock
from skerch.curvature.strategies.linear_map import StrategyError
from skerch.curvature.strategies.tape import TapeError

from .. import cases
from ..cases import assert_close, matrix, network


def test_auto_takes_the_strategy_that_the_clock_favours(monkeypatch):
    case = cases.make()
    ticks = iter(range(10_000))
    monkeypatch.setattr(clock, "_now", lambda device: next(ticks) / 1024)
    op = case.operator(HessianOperator)
    op @ torch.ones(43, dtype=torch.float64)
    assert op.strategy == "auto"
    # Every call takes one tick: the largest chunk is the cheapest for each vector.
    assert op.resolve(40) == strategies.Choice("batched", 40)
    assert (op.strategy, op.chunk_size) == ("batched", 40)
    assert op.resolve(2) == strategies.Choice("batched", 40)
    monkeypatch.setattr(clock, "_now", lambda device: 10.0 * next(ticks))
    slow = case.operator(HessianOperator)
    assert slow.resolve(40) == strategies.Choice("loop", 1)
    assert case.operator(HessianOperator).resolve(1).strategy == "loop"


class Unvectorisable(torch.autograd.Function):
    """x², with a backward pass that cannot be vectorised: it looks at numbers."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g if g.abs().sum().item() >= 0 else g


def test_auto_falls_to_the_loop_where_vectorising_fails():
    model, x, _ = network(nn.Tanh())

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        return nn.functional.mse_loss(Unvectorisable.apply(model(x)), x[:, :3])

    op = HessianOperator(model, [x], loss_fn)
    assert op.resolve(16).strategy == "loop"
    assert_close(matrix(op), dense_hessian(model, list(op.params), x, loss_fn))
    with pytest.raises(StrategyError, match=r"cannot be vectorised: .*; set strategy to loop"):
        matrix(HessianOperator(model, [x], loss_fn, strategy="batched"))
    with pytest.raises(TapeError, match="is no tensor; set strategy to batched or loop"):
        matrix(HessianOperator(model, [x], loss_fn, strategy="tape"))
