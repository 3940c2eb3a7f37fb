"""What is no derivative is refused; rounding and kinks are let through."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerch import HessianOperator, seigh
from skerch.curvature.checks import CheckError, second_derivative

from .cases import CROSS_ENTROPY, network


class Straight(torch.autograd.Function):
    """x³, whose gradient's derivative is left out, and symmetric all the same."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 3 * x.detach() ** 2
        return x**3

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class Cube(nn.Module):
    def forward(self, x):
        return Straight.apply(x)


def test_a_second_derivative_that_leaves_something_out_is_refused():
    model, x, y = network(Cube())
    with pytest.raises(CheckError, match=r"differs from the difference of gradients .* Replace it"):
        seigh(HessianOperator(model, [(x, y)], CROSS_ENTROPY), outer=5)
    op = HessianOperator(model.float(), [(x.float(), y)], CROSS_ENTROPY)
    with pytest.raises(CheckError, match="differs from the difference of gradients"):
        op @ torch.ones(op.shape[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kinks_are_no_wrong_derivatives(dtype):
    """Units at exactly zero: the gradient jumps there, and differences of it say nothing."""
    model, x, y = network(nn.ReLU())
    nn.init.zeros_(model[0].bias)
    x[::2] = 0
    op = HessianOperator(model.to(dtype), [(x.to(dtype), y)], CROSS_ENTROPY)
    assert torch.isfinite(op @ torch.ones(op.shape[0], dtype=dtype)).all()


def test_a_network_that_knows_one_precision_is_checked_in_that():
    model, x, y = network(Cube())
    model, x, offset = model.float(), x.float(), torch.zeros(5, 3)

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]) + batch[0][:, :1] @ offset[:1], batch[1])

    with pytest.raises(CheckError, match="differs from the difference of gradients"):
        HessianOperator(model, [(x, y)], loss_fn).verify()
    model[1] = nn.Tanh()
    HessianOperator(model, [(x, y)], loss_fn).verify()


class Branch(nn.Module):
    """x + ε b(a(x)³) with the incomplete derivative of `Cube`, on two units of many."""

    def __init__(self, ε: float):
        super().__init__()
        self.a, self.cube, self.b, self.ε = nn.Linear(5, 2), Cube(), nn.Linear(2, 5), ε

    def forward(self, x):
        return x + self.ε * self.b(self.cube(self.a(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["small branch", "beside kinks", "float32 logits"])
def test_a_wrong_derivative_does_not_hide(dtype, how):
    """Not behind larger parts of the network, units at their kink, or other precisions."""
    model, x, y = network(nn.ReLU(), Branch(0.01) if how == "small branch" else Cube())
    if how == "beside kinks":
        nn.init.zeros_(model[0].bias)
        x[::2] = 0

    def loss_fn(model, batch):
        logits = model(batch[0])
        logits = logits.to(torch.float32) if how == "float32 logits" else logits
        return nn.functional.cross_entropy(logits, batch[1])

    op = HessianOperator(model.to(dtype), [(x.to(dtype), y)], loss_fn)
    with pytest.raises(CheckError, match="differs from the difference of gradients"):
        op.verify()
    for layer in (model[2], getattr(model[2], "cube", None)):
        if isinstance(layer, Cube):
            layer.forward = torch.sin
    op.verify()


def test_rounding_is_no_wrong_derivative_unless_it_takes_all():
    """A saturated softmax in float32: 1 - p has lost most of its digits."""
    model, x, _ = network(nn.Tanh())
    y = model(x).argmax(dim=1)
    with torch.no_grad():
        logits = model(x).sort(dim=1).values
        model[2].weight *= 14 / (logits[:, 2] - logits[:, 1]).min()
        model[2].bias *= 14 / (logits[:, 2] - logits[:, 1]).min()
    batch = (x.float(), y)
    told = second_derivative(HessianOperator(model.float(), [batch], CROSS_ENTROPY))
    assert "beside θ, with" in told
    assert CROSS_ENTROPY(model, batch) < 1e-6
    with torch.no_grad():
        model[2].weight *= 1.3
        model[2].bias *= 1.3
    with pytest.raises(CheckError, match=r"Rounding takes 0\.\d of the norm .*float64"):
        HessianOperator(model, [batch], CROSS_ENTROPY).verify()
    HessianOperator(model.double(), [(x, y)], CROSS_ENTROPY).verify()
    nn.init.zeros_(model[2].weight)
    model[2].bias.data = torch.tensor([20.0, 0.0, 0.0]).double()
    with pytest.raises(CheckError, match=r"Rounding takes 0\.\d of the norm"):
        HessianOperator(model.float(), [(x.float(), 0 * y)], CROSS_ENTROPY).verify()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_not_that_of_the_loss_is_refused(dtype):
    model, x, y = network(nn.Tanh())
    losses = {
        "detach": lambda m, b: CROSS_ENTROPY(m, b) + m[2].weight.detach().square().sum(),
        "scaled": lambda m, b: Twice.apply(CROSS_ENTROPY(m, b)),
    }
    for loss_fn in losses.values():
        op = HessianOperator(model.to(dtype), [(x.to(dtype), y)], loss_fn)
        with pytest.raises(CheckError, match="gradient along v differs from the difference of los"):
            op.verify()


class Twice(torch.autograd.Function):
    """L, with the gradient of 2 L."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g
