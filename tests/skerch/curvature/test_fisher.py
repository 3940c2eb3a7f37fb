"""The Fisher information, exact and by Monte Carlo, against the GGN and dense sums over draws."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skerch.curvature import FisherOperator, GGNOperator, Numbered, supervised_loss
from skerch.curvature.batching import split_batch
from skerch.curvature.losses import LossOfOutput
from skerch.curvature.losses.closed_forms import SquaredError
from skerch.errors import ShapeError, SkerchError

from . import cases
from .cases import CROSS_ENTROPY, assert_close, matrix, network


@pytest.mark.parametrize("name", ["mlp", "tied weights", "class weights", "regression"])
def test_the_expectation_is_the_dense_ggn(name):
    case = cases.make(name)
    assert_close(matrix(case.operator(FisherOperator)), case.ggn())


@pytest.mark.parametrize("name", ["class weights", "regression"])
def test_many_draws_come_near_the_expectation(name):
    """Their error falls as one over the square root of their number."""
    case = cases.make(name)
    exact, errors = case.ggn(), torch.zeros(2, 8)
    for row, samples in zip(errors, (10, 1000), strict=True):
        for seed in range(len(row)):
            op = case.operator(FisherOperator, samples=samples, seed=seed, check=False)
            F_hat = matrix(op)
            row[seed] = (F_hat - exact).norm() / exact.norm()
            assert torch.linalg.eigvalsh(F_hat).min() > -1e-12
    few, many = errors.square().mean(dim=1).sqrt()
    assert 5 < few / many < 20
    assert many < 0.2


@pytest.mark.parametrize("name", ["mlp", "tied weights", "class weights"])
def test_batches_microbatches_and_order_do_not_change_the_draws(name):
    case = cases.make(name)
    weight = case.batch_weight
    make = partial(FisherOperator.of_loss, case.model, loss_fn=case.loss_fn, samples=3, seed=5)
    whole = matrix(make([(case.x, case.y)], batch_weight=weight))
    assert_close(matrix(make(case.batches, batch_weight=weight)), whole)
    assert_close(matrix(make(case.batches, batch_weight=weight, microbatch_size=3)), whole)
    numbered = split_batch(Numbered((case.x, case.y), torch.arange(11)), 2)[::-1]
    assert_close(matrix(make(numbered, batch_weight=weight, strategy="tape")), whole)
    other = FisherOperator.of_loss(case.model, case.batches, case.loss_fn, samples=3, seed=6)
    assert (matrix(other) - whole).abs().max() > 0.01 * whole.abs().max()


def test_no_seed_is_a_fresh_one_for_all_products():
    case = cases.make()
    one, other = (case.operator(FisherOperator, samples=2, seed=None) for _ in range(2))
    F_hat = matrix(one)
    assert_close(matrix(one), F_hat)
    assert (matrix(other) - F_hat).abs().max() > 1e-3 * F_hat.abs().max()


def test_padding_draws_no_labels():
    """What is ignored changes nothing, whatever stands there."""
    case = cases.make("tied weights")
    padding = case.y == cases.IGNORED
    other = case.x.where(~padding, 0), case.y
    ops = [
        FisherOperator.of_loss(case.model, [data], CROSS_ENTROPY, samples=2)
        for data in ((case.x, case.y), other)
    ]
    assert padding.any()
    assert_close(matrix(ops[0]), matrix(ops[1]))


def test_equals_the_ggn_with_binary_labels():
    model, x, y = network(nn.Tanh())
    loss = supervised_loss(nn.BCEWithLogitsLoss())
    data = [(x, F.one_hot(y, 3).double())]
    F_, G = (matrix(kind.of_loss(model, data, loss)) for kind in (FisherOperator, GGNOperator))
    assert_close(F_, G)


def test_a_loss_that_is_no_likelihood_is_refused():
    model, x, y = network(nn.Tanh())
    with pytest.raises(SkerchError, match="of a likelihood of labels"):
        FisherOperator.of_loss(model, [(x, y)], supervised_loss(F.multi_margin_loss))
    with pytest.raises(SkerchError, match="samples is -1"):
        FisherOperator.of_loss(model, [(x, y)], CROSS_ENTROPY, samples=-1)


def test_outputs_without_examples_along_dimension_0_are_refused():
    model, x, y = network(nn.Tanh())
    data, flat = [(x, F.one_hot(y, 3).double())], lambda f, batch: f(batch[0]).T
    loss = LossOfOutput(F.mse_loss, SquaredError(), lambda batch: batch[1].T)
    op = FisherOperator(model, data, flat, loss, samples=1, check=False)
    with pytest.raises(ShapeError, match=r"for 12 examples along dimension 0 .* \(3, 12\)"):
        op @ torch.ones(43).double()


def test_draws_are_those_that_curvlinops_takes_the_mean_of():
    curvlinops = pytest.importorskip("curvlinops")
    case = cases.make()
    data = list(zip(case.x.split(4), case.y.split(4), strict=True))
    params, criterion = list(case.model.parameters()), nn.CrossEntropyLoss()
    theirs = curvlinops.FisherMCLinearOperator(case.model, criterion, params, data, mc_samples=2000)
    exact = matrix(case.operator(FisherOperator))
    assert (theirs @ torch.eye(43).double() - exact).norm() < 0.2 * exact.norm()
