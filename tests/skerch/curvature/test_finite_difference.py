"""Hessian products by differences of gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerch.curvature import HessianOperator
from skerch.curvature.finite_difference import STEPS
from skerch.errors import SkerchError

from . import cases
from .cases import CROSS_ENTROPY, assert_close, matrix, network


@pytest.mark.parametrize("name", cases.NAMES)
def test_equals_the_dense_hessian_to_the_square_of_its_step(name):
    case = cases.make(name)
    op = case.operator(HessianOperator, method="finite_difference")
    assert_close(matrix(op), case.hessian(), 1e-8)


def test_the_step_does_not_depend_on_the_length_of_the_vector():
    """Without normalising v it is off by 1.3e-2 for Gaussian v of 265,000 entries."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 507), nn.Tanh(), nn.Linear(507, 10))
    data = [(torch.randn(16, 512), torch.arange(16) % 10)]
    exact = HessianOperator(model, data, CROSS_ENTROPY)
    op = HessianOperator(model, data, CROSS_ENTROPY, method="finite_difference")
    v = torch.randn(op.size)
    product = op @ v
    assert (product - exact @ v).norm() < 1e-3 * product.norm()
    assert_close(op @ (1e4 * v), 1e4 * product, 1e-3)
    assert torch.equal(op @ (0 * v), torch.zeros(op.size))


def test_parameters_are_the_same_to_the_bit_also_after_an_exception():
    model, x, y = network(nn.Tanh())
    model.float()
    before = [(p.data_ptr(), p.detach().clone()) for p in model.parameters()]
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        if len(calls) == 5:
            raise FloatingPointError("the fifth")
        return CROSS_ENTROPY(model, batch)

    op = HessianOperator(model, [(x.float(), y)], loss_fn, method="finite_difference", check=False)
    for _ in range(2):
        op @ torch.randn(op.size)
    with pytest.raises(FloatingPointError, match="the fifth"):
        op @ torch.randn(op.size)
    for p, (address, value) in zip(model.parameters(), before, strict=True):
        assert p.data_ptr() == address
        assert torch.equal(p, value)


def test_fused_attention_stays():
    case = cases.make("attention")
    fused = []

    def loss_fn(model, batch):
        fused.append(torch.backends.cuda.flash_sdp_enabled())
        return case.loss_fn(model, batch)

    for method, stays in (("autograd", False), ("finite_difference", True)):
        fused.clear()
        op = HessianOperator(case.model, case.batches, loss_fn, method=method, check=False)
        op @ torch.ones(op.size).double()
        assert set(fused) == {stays}


@pytest.mark.parametrize("dtype", STEPS)
def test_the_default_step_is_that_of_the_dtype(dtype):
    model, x, y = network(nn.Tanh())
    data = [(x.to(dtype), y)]
    op = HessianOperator(model.to(dtype), data, CROSS_ENTROPY, method="finite_difference")
    assert op.fd_eps == STEPS[dtype]
    exact = HessianOperator(model, data, CROSS_ENTROPY)
    H = matrix(exact)
    assert (matrix(op) - H).norm() < 0.1 * H.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "bogus"}, "unknown method 'bogus'; choose autograd or finite_difference"),
        ({"method": "finite_difference", "strategy": "tape"}, "tape differentiates"),
        ({"method": "finite_difference", "fd_eps": 0.0}, r"fd_eps is 0\.0"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_sentence(options, message):
    with pytest.raises(SkerchError, match=message):
        matrix(cases.make().operator(HessianOperator, **options))
