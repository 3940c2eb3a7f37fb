"""The dense Hessian: of what `torch.func` has no rule for, and refused where it is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerch.curvature.dense import dense_hessian
from skerch.errors import SkerchError

from .cases import differences


class Cube(torch.autograd.Function):
    """x³, as functions of one's own are mostly written: for autograd alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x.square() * g


class Lopsided(torch.autograd.Function):
    """a b, whose gradient in a is said not to depend on b."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g * b.detach(), g * a


class Net(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.unused = nn.Parameter(torch.ones(2))
        self.activation = activation

    def forward(self, x):
        return self.second(self.activation(self.first(x)))


def in_place(x):
    y = torch.empty_like(x)
    for row in range(len(x)):
        y[row] = x[row].tanh() if bool(x[row].sum() > 0) else x[row].sin()
    return y.mul_(2)


def squares(model, batch):
    return (model(batch) - 1).square().mean()


def penalty(model, batch):
    """A loss that differentiates with respect to its inputs."""
    x = batch.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return slope.square().mean()


@pytest.fixture
def made():
    """A function that gives a network of an activation, its parameters' names, and a batch."""

    def make(activation):
        torch.manual_seed(0)
        model = Net(activation).double()
        names = [name for name, _ in model.named_parameters()]
        return model, names, torch.randn(6, 3, dtype=torch.float64)

    return make


@pytest.mark.parametrize(
    ("activation", "loss_fn"),
    [
        (Cube.apply, squares),
        (in_place, squares),
        (lambda x: torch.cdist(x, 3 * torch.eye(4, dtype=x.dtype), p=1.0), squares),
        (torch.tanh, penalty),
    ],
    ids=["a function of one's own", "in-place code", "cdist", "a loss with input gradients"],
)
def test_the_hessian_is_that_of_finite_differences(made, activation, loss_fn):
    model, names, batch = made(activation)
    params = {name: model.get_parameter(name) for name in names}
    expected = differences(lambda: loss_fn(model, batch), params)
    error = torch.linalg.norm(dense_hessian(model, names, batch, loss_fn) - expected)
    assert float(error) < 1e-8 * float(torch.linalg.norm(expected))


def test_a_linear_loss_has_no_curvature(made):
    assert not dense_hessian(*made(torch.tanh), lambda model, batch: model.unused.sum()).any()


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        (lambda x: Lopsided.apply(x, x.roll(1, 1)), "not symmetric"),
        (lambda x: x.float().tanh().double(), "not symmetric"),
        (lambda x: (x - x).abs().sqrt(), "not finite"),
    ],
)
def test_what_is_no_hessian_is_refused(made, activation, words):
    with pytest.raises(SkerchError, match=words):
        dense_hessian(*made(activation), squares)


def test_a_loss_of_less_than_float64_is_refused(made):
    with pytest.raises(SkerchError, match=r"the loss is torch\.float32"):
        dense_hessian(*made(torch.tanh), lambda model, batch: squares(model, batch).float())
