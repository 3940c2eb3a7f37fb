"""The empirical Fisher against sums over the gradients of examples, one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerch.curvature import (
    EmpiricalFisherOperator,
    strategies,
    supervised_loss,
    supervised_per_sample_loss,
)
from skerch.errors import ShapeError

from . import cases
from .cases import CROSS_ENTROPY, assert_close, matrix, network

PER_SAMPLE = supervised_per_sample_loss(F.cross_entropy)


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    grads = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return nn.utils.parameters_to_vector(grads)


def dense(case: cases.Case) -> Tensor:
    """Σ c g gᵀ / Σ c over the positions of labels that are not ignored, c a class's weight."""
    terms, weights = [], []
    c = cases.CLASS_WEIGHTS if case.batch_weight and case.y.ndim == 1 else torch.ones(9).double()
    for x, y in zip(case.x, case.y, strict=True):
        for position, label in enumerate(y.flatten()):
            if label != cases.IGNORED:
                logits = case.model(x[None]).reshape(1, -1, y.numel())
                loss = F.cross_entropy(logits[:, :, position], label[None])
                g = gradient(loss, case.model)
                terms.append(c[label] * torch.outer(g, g))
                weights.append(c[label])
    return sum(terms) / sum(weights)


@pytest.mark.parametrize("strategy", strategies.STRATEGIES)
@pytest.mark.parametrize("name", ["mlp", "convolution", "tied weights", "class weights"])
def test_of_a_mean_loss_is_the_sum_over_its_terms_on_uneven_batches(name, strategy):
    case = cases.make(name)
    op = case.operator(EmpiricalFisherOperator, strategy=strategy)
    assert_close(matrix(op), dense(case))
    assert op.loss() == pytest.approx(float(case.loss().detach()), rel=1e-12)


def test_of_squares_is_the_sum_over_examples():
    case = cases.make("regression")
    expected = 0
    for x, y in zip(case.x, case.y, strict=True):
        g = gradient(F.mse_loss(case.model(x), y), case.model)
        expected = expected + torch.outer(g, g) / len(case.x)
    assert_close(matrix(case.operator(EmpiricalFisherOperator)), expected)


@pytest.mark.parametrize("strategy", strategies.STRATEGIES)
def test_of_a_loss_of_samples_is_the_mean_on_uneven_batches(strategy):
    """Also where batches weigh alike in the mean of their means: 4, 4 and 3 examples."""
    case = cases.make()
    op = EmpiricalFisherOperator(case.model, case.batches, PER_SAMPLE, strategy=strategy)
    assert_close(matrix(op), dense(case))
    assert op.loss() == pytest.approx(float(case.loss().detach()), rel=1e-12)
    small = EmpiricalFisherOperator(case.model, case.batches, PER_SAMPLE, microbatch_size=3)
    assert_close(matrix(small), dense(case))


def test_of_one_example_has_rank_one():
    model, x, y = network(nn.Tanh(), examples=1)
    values = torch.linalg.eigvalsh(matrix(EmpiricalFisherOperator(model, [(x, y)], PER_SAMPLE)))
    assert values[-1] > 1e-3
    assert values[:-1].abs().max() < 1e-12 * values[-1]


def test_samples_lie_along_any_dimension():
    case = cases.make()
    columns = [{"x": x.T, "y": y[None].expand(2, -1)} for x, y in case.batches]

    def loss(model, sample):
        return F.cross_entropy(model(sample["x"]), sample["y"][0])

    op = EmpiricalFisherOperator(case.model, columns, loss, sample_dim=1)
    assert_close(matrix(op), dense(case))
    odd = [{"x": case.x.T, "y": case.y[None, :3]}]
    with pytest.raises(ShapeError, match=r"\[3, 11\] entries along sample_dim=1"):
        EmpiricalFisherOperator(case.model, odd, loss, sample_dim=1) @ torch.ones(43).double()
    flat = [{"x": case.x.T, "y": case.y}]
    for dim in (1, -2):
        with pytest.raises(ShapeError, match=rf"shape \(11,\) and no sample_dim={dim}"):
            EmpiricalFisherOperator(case.model, flat, loss, sample_dim=dim) @ torch.ones(
                43
            ).double()


def test_a_loss_that_cannot_be_vectorised_goes_sample_by_sample():
    case = cases.make()

    def loss(model, sample):
        x, y = sample
        return F.cross_entropy(model(x), y) * (1 if float(x.sum().detach()) < 1e9 else 2)

    op = EmpiricalFisherOperator(case.model, case.batches, loss)
    assert_close(matrix(op), dense(case))


def test_another_loss_has_its_examples_along_dimension_0_of_the_output():
    case = cases.make()
    loss = supervised_loss(lambda z, y: F.cross_entropy(z, y))
    op = EmpiricalFisherOperator.of_loss(case.model, case.batches, loss)
    assert_close(matrix(op), dense(case))


def test_equals_curvlinops_in_float32():
    curvlinops = pytest.importorskip("curvlinops")
    case = cases.make()
    model, x, criterion = case.model.float(), case.x.float(), nn.CrossEntropyLoss()
    data = list(zip(x.split(4), case.y.split(4), strict=True))
    theirs = curvlinops.EFLinearOperator(model, criterion, list(model.parameters()), data)
    ours = EmpiricalFisherOperator.of_loss(model, data, CROSS_ENTROPY)
    X = torch.randn(ours.shape[0], 6, generator=torch.Generator().manual_seed(1))
    assert_close(ours @ X, theirs @ X, 1e-5)
