"""The Hessian operator against the dense oracles of the cases, and of losses of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from skerch.curvature import HessianOperator, strategies, supervised_loss
from skerch.curvature.dense import dense_hessian
from skerch.curvature.strategies.linear_map import DerivativeError

from . import cases
from .cases import CROSS_ENTROPY, assert_close, matrix, network


@pytest.mark.parametrize("strategy", strategies.STRATEGIES)
@pytest.mark.parametrize("name", cases.NAMES)
def test_equals_the_dense_hessian_on_uneven_batches(name, strategy):
    case = cases.make(name)
    op = case.operator(HessianOperator, strategy=strategy)
    H = matrix(op)
    assert_close(H, case.hessian(), case.tolerance)
    assert_close(H, H.T, 1e-13)
    assert op.T is op
    assert op.loss() == pytest.approx(float(case.loss().detach()), rel=1e-12)


def test_linear_regression_has_the_second_moment_of_its_inputs():
    torch.manual_seed(0)
    x, y = torch.randn(16, 5).double(), torch.randn(16, 1).double()
    model = nn.Linear(5, 1, bias=False).double()
    op = HessianOperator(model, [(x[:9], y[:9]), (x[9:], y[9:])], supervised_loss(nn.MSELoss()))
    assert_close(matrix(op), 2 / 16 * x.T @ x, 1e-13)


def test_logistic_regression_weighs_it_by_the_covariance_of_its_labels():
    """H = Σ_i (diag p_i - p_i p_iᵀ) ⊗ x_i x_iᵀ / n."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 5).double(), torch.arange(16) % 3
    model = nn.Linear(5, 3, bias=False).double()
    op = HessianOperator(model, [(x[:9], y[:9]), (x[9:], y[9:])], CROSS_ENTROPY)
    p = model(x).detach().softmax(1)
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    H = torch.einsum("iab,ic,id->acbd", covariance, x, x).reshape(15, 15) / 16
    assert_close(matrix(op), H, 1e-13)


def test_equals_curvlinops_in_float32():
    curvlinops = pytest.importorskip("curvlinops")
    case = cases.make()
    model, x, criterion = case.model.float(), case.x.float(), nn.CrossEntropyLoss()
    data = list(zip(x.split(4), case.y.split(4), strict=True))
    theirs = curvlinops.HessianLinearOperator(model, criterion, list(model.parameters()), data)
    ours = HessianOperator(model, data, supervised_loss(criterion))
    X = torch.randn(ours.shape[0], 6, generator=torch.Generator().manual_seed(1))
    assert_close(ours @ X, theirs @ X, 1e-5)


@pytest.mark.parametrize("strategy", ["auto", *strategies.STRATEGIES])
def test_a_linear_loss_has_a_zero_hessian(strategy):
    data = [torch.randn(5, 3)]
    op = HessianOperator(nn.Linear(3, 1), data, lambda f, x: f(x).mean(), strategy=strategy)
    assert torch.equal(op @ torch.ones(4, 2), torch.zeros(4, 2))


def test_a_loss_linear_in_some_parameters_keeps_their_cross_terms():
    model = nn.Module()
    model.a = nn.Parameter(torch.tensor([2.0, 5.0]))
    model.b = nn.Parameter(torch.tensor([3.0]))

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        return (model.a * x).sum() * model.b[0]

    op = HessianOperator(model, [torch.ones(2)], loss_fn)
    assert torch.equal(matrix(op), torch.tensor([[0.0, 0, 1], [0, 0, 1], [1, 1, 0]]))
    for strategy in strategies.STRATEGIES:
        part = HessianOperator(model, [torch.ones(2)], loss_fn, param_filter="a", strategy=strategy)
        assert torch.equal(matrix(part), torch.zeros(2, 2))


def test_a_loss_that_differentiates_its_inputs_is_a_loss():
    model, x, _ = network(nn.Tanh())

    def loss_fn(model, batch):
        z = batch.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(z).square().sum(), z, create_graph=True)
        return slope.square().mean()

    op = HessianOperator(model, [x], loss_fn)
    assert op.loss() == pytest.approx(float(loss_fn(model, x).detach()))
    H = op @ torch.eye(43).double()
    torch.testing.assert_close(H, dense_hessian(model, list(op.params), x, loss_fn))


def test_a_missing_second_derivative_names_the_operation_and_its_layer():
    net, x, _ = network(nn.Tanh())
    model = nn.ModuleDict({"net": net, "criterion": nn.MultiLabelMarginLoss()})
    targets = torch.tensor([[0, 2, -1]]).expand(12, 3)

    def loss_fn(model, batch):
        return model["criterion"](model["net"](batch[0]), batch[1])

    for strategy in ("loop", "batched", "tape", "auto"):
        op = HessianOperator(model, [(x, targets)], loss_fn, strategy=strategy, check=False)
        with pytest.raises(DerivativeError, match=r"multilabel_margin.* Replace .* in criterion\."):
            op @ torch.ones(43, 2).double()
