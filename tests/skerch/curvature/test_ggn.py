"""The GGN against dense Jacobians, closed forms, curvlinops, and losses of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerch.curvature import GGNOperator, HessianOperator, strategies, supervised_loss
from skerch.curvature.checks import CheckError
from skerch.curvature.losses import (
    cross_entropy_loss_of_output,
    mse_loss_of_output,
    supervised_forward,
    supervised_loss_of_output,
)
from skerch.errors import SkerchError

from . import cases
from .cases import CROSS_ENTROPY, assert_close, matrix, network


@pytest.mark.parametrize("strategy", strategies.STRATEGIES)
@pytest.mark.parametrize("name", cases.NAMES)
def test_equals_the_dense_ggn_on_uneven_batches(name, strategy):
    case = cases.make(name)
    op = case.operator(GGNOperator, strategy=strategy)
    G = matrix(op)
    assert_close(G, case.ggn())
    assert_close(G, G.T, 1e-13)
    assert op.loss() == pytest.approx(float(case.loss().detach()), rel=1e-12)


@pytest.mark.parametrize("criterion", [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_the_closed_form_and_autograd_agree(criterion):
    case = cases.make()
    parts = case.model, case.batches, supervised_forward, supervised_loss_of_output(criterion)
    analytical, autograd = (GGNOperator(*parts, loss_hvp=how) for how in ("analytical", "autograd"))
    assert_close(matrix(analytical), matrix(autograd), 1e-12)


def test_of_a_linear_network_is_the_hessian_in_closed_form():
    """Least squares 2/(nk) XᵀX ⊗ I, and logistic regression Σ p(1 - p) x xᵀ / n."""
    torch.manual_seed(0)
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    model = nn.Linear(3, 2, bias=False).double()
    op = GGNOperator(model, [(x, y)], supervised_forward, mse_loss_of_output())
    assert_close(matrix(op), torch.kron(torch.eye(2).double(), x.T @ x) * 2 / 14)
    model, labels = nn.Linear(3, 1, bias=False).double(), torch.arange(7).double()[:, None] % 2
    loss = supervised_loss(nn.BCEWithLogitsLoss())
    p = model(x).detach().sigmoid()
    expected = (x * p * (1 - p)).T @ x / 7
    assert_close(matrix(GGNOperator.of_loss(model, [(x, labels)], loss)), expected)


def test_with_a_zero_residual_is_the_hessian():
    case = cases.make("regression")
    batch = (case.x, case.model(case.x).detach())
    G = GGNOperator.of_loss(case.model, [batch], case.loss_fn)
    assert_close(matrix(G), matrix(HessianOperator(case.model, [batch], case.loss_fn)))


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.MSELoss()])
def test_equals_curvlinops_in_float32(criterion):
    curvlinops = pytest.importorskip("curvlinops")
    case = cases.make()
    y = F.one_hot(case.y, 3).float() if isinstance(criterion, nn.MSELoss) else case.y
    model, x = case.model.float(), case.x.float()
    data = list(zip(x.split(4), y.split(4), strict=True))
    theirs = curvlinops.GGNLinearOperator(model, criterion, list(model.parameters()), data)
    ours = GGNOperator.of_loss(model, data, supervised_loss(criterion))
    X = torch.randn(ours.shape[0], 6, generator=torch.Generator().manual_seed(1))
    assert_close(ours @ X, theirs @ X, 1e-5)


def test_any_loss_that_calls_the_model_once_has_one():
    case = cases.make()

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    op = GGNOperator.of_loss(case.model, case.batches, loss_fn)
    assert_close(matrix(op), case.ggn())
    assert "forward" not in vars(case.model)


def test_a_loss_that_calls_the_model_twice_is_told_what_is_needed():
    model, x, y = network(nn.Tanh())
    op = GGNOperator.of_loss(model, [(x, y)], lambda f, b: (f(b[0]) - f(-b[0])).square().mean())
    with pytest.raises(SkerchError, match=r"calls the model 2 times.* supervised_loss makes"):
        op @ torch.ones(43).double()


def test_a_loss_without_a_closed_form_says_so():
    model, x, y = network(nn.Tanh())
    loss = supervised_loss_of_output(F.multi_margin_loss)
    with pytest.raises(SkerchError, match="no closed form hvp"):
        GGNOperator(model, [(x, y)], supervised_forward, loss)
    with pytest.raises(SkerchError, match="Unknown loss_hvp 'exact'; choose"):
        GGNOperator(model, [(x, y)], supervised_forward, loss, loss_hvp="exact")


def test_a_loss_linear_in_the_outputs_has_a_zero_ggn():
    model, x, _ = network(nn.Tanh())
    op = GGNOperator.of_loss(model, [x], lambda f, batch: f(batch).mean())
    assert torch.equal(op @ torch.ones(43, 2).double(), torch.zeros(43, 2).double())


def test_weight_decay_in_the_loss_is_refused():
    model, x, y = network(nn.Tanh())

    def loss_fn(f: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return CROSS_ENTROPY(f, batch) + f[0].weight.square().sum()

    with pytest.raises(CheckError, match=r"depends on 0\.weight also apart from"):
        GGNOperator.of_loss(model, [(x, y)], loss_fn) @ torch.ones(43).double()


class StraightThrough(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + (x.round() - x).detach()


def test_a_backward_pass_that_is_not_the_derivative_is_refused():
    model, x, y = network(StraightThrough())
    with pytest.raises(CheckError, match="straight-through"):
        GGNOperator.of_loss(model, [(x, y)], CROSS_ENTROPY) @ torch.ones(43).double()


def test_a_wrong_closed_form_is_refused():
    model, x, y = network(nn.Tanh())
    loss = cross_entropy_loss_of_output()
    loss.hvp = lambda output, batch, u: 2 * loss.closed.hvp(output, batch[1], u)
    with pytest.raises(CheckError, match="mend the loss's hvp"):
        GGNOperator(model, [(x, y)], supervised_forward, loss) @ torch.ones(43).double()


@pytest.mark.parametrize("length", [1e-12, 1.0, 1e6])
def test_a_finite_difference_is_as_good_for_vectors_of_all_lengths(length):
    case = cases.make()
    op = case.operator(GGNOperator, method="finite_difference")
    v = torch.randn(43, generator=torch.Generator().manual_seed(1)).double() * length
    assert_close((op @ v) / length, (case.ggn() @ v) / length, 1e-8)
    assert op.strategy == "loop"


def test_a_finite_difference_along_a_gaussian_vector_of_many_entries_is_normalised():
    """Without that its step is √N times as long, and the product wrong by a percent."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 3))
    data = [(torch.randn(20, 512), torch.arange(20) % 3)]
    v = torch.randn(sum(p.numel() for p in model.parameters()))
    exact = GGNOperator.of_loss(model, data, CROSS_ENTROPY) @ v
    found = GGNOperator.of_loss(model, data, CROSS_ENTROPY, method="finite_difference") @ v
    assert (found - exact).norm() < 1e-3 * exact.norm()


def test_uneven_batches_are_not_a_mean_of_means():
    """33 examples in batches of 32, an outlier last: a mean of means is wrong by a multiple."""
    torch.manual_seed(0)
    model, x, y = cases.mlp().double(), torch.randn(33, 4).double(), torch.arange(33) % 3
    x[-1] *= 20
    data = [(x[:32], y[:32]), (x[32:], y[32:])]
    whole = matrix(GGNOperator.of_loss(model, [(x, y)], CROSS_ENTROPY))
    parts = [matrix(GGNOperator.of_loss(model, [part], CROSS_ENTROPY)) for part in data]
    assert (sum(parts) / 2 - whole).norm() > whole.norm()
    assert_close(matrix(GGNOperator.of_loss(model, data, CROSS_ENTROPY)), whole)


def test_kinks_are_no_errors():
    model, x, y = network(nn.ReLU(), nn.Linear(5, 5), nn.ReLU6())
    op = GGNOperator.of_loss(model, [(x, y)], CROSS_ENTROPY)
    G = op @ torch.eye(op.shape[0]).double()
    assert_close(G, G.T, 1e-13)
