"""A recorded pass gives the products of any block, or is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from skerch.curvature import HessianOperator, supervised_loss
from skerch.curvature.strategies.tape import Tape, TapeError

from ..cases import CROSS_ENTROPY, assert_close, network


@pytest.mark.parametrize(("examples", "widths"), [(70, (80, 3, 66, 5)), (5, (3, 70, 4, 90))])
def test_a_tape_multiplies_matrices_of_all_shapes(examples, widths):
    torch.manual_seed(3)
    layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(widths)]
    model = nn.Sequential(*layers).double()
    data = [(torch.randn(examples, widths[0]).double(), torch.randn(examples, widths[-1]).double())]
    loop, tape = (
        HessianOperator(model, data, supervised_loss(nn.MSELoss()), strategy=strategy)
        for strategy in ("loop", "tape")
    )
    X = torch.randn(loop.shape[0], 9, dtype=torch.float64)
    assert_close(tape @ X, loop @ X, 1e-13)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_tape_knows_log_softmax_along_any_dimension(dim):
    x, y = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    p = x.softmax(dim)

    def backward(vectors: list[Tensor]) -> list[Tensor]:
        z = x.clone().requires_grad_()
        return list(torch.autograd.grad(z.log_softmax(dim), z, vectors[0] * y))

    V = torch.randn(6, 4, 3, 5, dtype=torch.float64)
    along = dim % 3 + 1
    expected = V * y - p * (V * y).sum(along, keepdim=True)
    assert_close(Tape(backward, [x])([V])[0], expected, 1e-14)


@pytest.mark.parametrize("aliased", [False, True])
def test_a_tape_is_right_about_writing_in_place_or_refuses(aliased):
    x = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)

    def backward(vectors: list[Tensor]) -> list[Tensor]:
        product = vectors[0] * x
        seen = product.view(3, 1) if aliased else product
        product.mul_(3).mul_(x)
        return [seen.view(3)]

    if aliased:
        with pytest.raises(TapeError, match="writes into a tensor; set strategy"):
            Tape(backward, [x])
    else:
        V = torch.randn(4, 3, dtype=torch.float64)
        assert_close(Tape(backward, [x])([V])[0], 3 * x**2 * V, 1e-14)


class Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g):
        out = torch.zeros(len(g), 4)
        out[:, :3] = g
        return out

    @staticmethod
    def backward(ctx, h):
        return h[:, :3].clone()


class Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x[:, :3].clone()

    @staticmethod
    def backward(ctx, g):
        return Unpad.apply(g)


def test_a_tape_refuses_what_is_written_into_a_part_of_a_tensor():
    torch.manual_seed(0)
    small, large = nn.Linear(3, 4), nn.Linear(3, 3)
    x, y = torch.randn(2, 300, 3)

    def loss_fn(model: nn.ModuleList, batch: tuple[Tensor, Tensor]) -> Tensor:
        shown = Pad.apply(model[0](batch[0]).tanh()), 30 * model[1](batch[0])
        return sum(nn.functional.mse_loss(z, batch[1]) for z in shown)

    op = HessianOperator(nn.ModuleList([small, large]), [(x, y)], loss_fn, strategy="tape")
    with pytest.raises(TapeError, match="cannot be recorded"):
        op @ torch.ones(op.shape[0], 2)


def test_a_tape_looks_at_each_parameter():
    x = torch.ones(2), torch.ones(2)

    def backward(vectors: list[Tensor]) -> list[Tensor]:
        small = vectors[0].numpy().copy()  # which no recorder sees
        return [vectors[0] * 0 + 1e-2 * torch.from_numpy(small), 30 * vectors[1]]

    with pytest.raises(TapeError, match="it does other things for other vectors"):
        Tape(backward, x)


def test_a_tape_knows_gelu_of_any_dimension():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    data = [(torch.randn(5, 6, 3), torch.randn(5, 6, 2))]
    loop, tape = (
        HessianOperator(model, data, supervised_loss(nn.MSELoss()), strategy=strategy)
        for strategy in ("loop", "tape")
    )
    X = torch.randn(loop.shape[0], 3)
    assert_close(tape @ X, loop @ X, 1e-5)


def test_a_tape_leaves_an_infinite_hessian_to_whoever_looks_at_its_columns():
    model, x, y = network(nn.Tanh())
    data = [(x.masked_fill(x > 1, torch.inf), y)]
    op = HessianOperator(model, data, CROSS_ENTROPY, strategy="tape", check=False)
    assert not torch.isfinite(op @ torch.ones(op.shape[0], 2, dtype=torch.float64)).all()
