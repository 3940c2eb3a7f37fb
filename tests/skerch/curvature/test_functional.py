"""Models that are functions of their parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from skerch.curvature import HessianOperator
from skerch.errors import SkerchError

from . import cases
from .cases import CROSS_ENTROPY, assert_close, matrix


@pytest.mark.parametrize("method", ["autograd", "finite_difference"])
@pytest.mark.parametrize("name", ["mlp", "unused parameters", "regression", "tied weights"])
def test_a_function_has_the_hessian_of_its_module(name, method):
    case = cases.make(name)
    params = {n: p.detach().clone() for n, p in case.model.named_parameters()}

    def function(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(case.model, params, (x,))

    op = HessianOperator(
        function,
        case.batches,
        case.loss_fn,
        params=params,
        batch_weight=case.batch_weight,
        method=method,
    )
    assert list(op.params) == list(params)
    assert_close(matrix(op), case.hessian(), 1e-10 if method == "autograd" else 1e-8)


def test_the_function_sees_all_parameters_and_the_operator_the_selected_ones():
    x, y = cases.make().x, cases.make().y
    shared = nn.Parameter(torch.randn(3, 4).double())
    params = {"b.x": torch.zeros(3).double(), "a": shared, "b.twin": shared}
    seen = []

    def function(params: dict[str, Tensor], x: Tensor) -> Tensor:
        seen.append(list(params))
        return x @ (params["a"] + params["b.twin"]).T + params["b.x"]

    def operator(**options) -> HessianOperator:
        return HessianOperator(function, [(x, y)], CROSS_ENTROPY, params=params, **options)

    op = operator(param_filter="a")
    p = function(params, x).detach().softmax(1)
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    H = 4 * torch.einsum("iab,ic,id->acbd", covariance, x, x).reshape(12, 12) / len(x)
    assert_close(matrix(op), H)
    assert set(map(tuple, seen)) == {("b.x", "a", "b.twin")}
    assert list(operator().params) == ["b.x", "a"]  # what is shared counts once
    before = matrix(op)
    with torch.no_grad():
        params["b.x"].add_(1.0).mul_(torch.tensor([1.0, 2.0, 3.0]).double())
    assert (matrix(op) - before).norm() > 0.1 * before.norm()  # in the memory of the caller's


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        (lambda params, x: x, None, "needs params, a dict of tensors"),
        (lambda params, x: x, (torch.ones(3, 4),), "needs params, a dict of tensors"),
        (nn.Linear(4, 3), {"weight": torch.ones(3, 4)}, "leave params out"),
    ],
)
def test_parameters_are_those_of_a_function(model, params, message):
    with pytest.raises(SkerchError, match=message):
        HessianOperator(model, [], CROSS_ENTROPY, params=params)


def test_whole_numbers_among_the_parameters_are_handed_on():
    params = {"w": torch.randn(4, 3).double(), "shift": torch.tensor([1, 2, 3])}
    batch = torch.randn(5, 4).double(), torch.randint(3, (5,))
    op = HessianOperator(
        lambda p, x: x @ p["w"] + p["shift"], [batch], CROSS_ENTROPY, params=params
    )
    assert list(op.params) == ["w"]
    v = torch.arange(12.0).double()
    assert_close(op @ v, matrix(op) @ v)
