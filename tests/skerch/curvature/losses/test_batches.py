"""Losses of batches, and what their means divide by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerch.curvature import HessianOperator, label_weight
from skerch.curvature.dense import dense_hessian
from skerch.errors import ShapeError, SkerchError

from ..cases import CROSS_ENTROPY, network


def test_the_weight_of_all_the_data_in_one_batch_need_not_be_known():
    torch.manual_seed(0)
    x, y = torch.randn(5, 6, 3), torch.arange(6) % 2  # (time, batch, features)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0].double()).mean(0), batch[1])

    eye = torch.eye(26, dtype=torch.float64)
    exact = HessianOperator(model, [(x, y)], loss_fn, batch_weight=lambda batch: 6.0) @ eye
    torch.testing.assert_close(HessianOperator(model, [(x, y)], loss_fn) @ eye, exact)
    halves = [(x[:, :4], y[:4]), (x[:, 4:], y[4:])]
    by_hand = HessianOperator(model, halves, loss_fn, batch_weight=lambda b: float(len(b[1])))
    torch.testing.assert_close(by_hand @ eye, exact)
    with pytest.raises(ShapeError, match="give a batch_weight"):
        HessianOperator(model, halves, loss_fn) @ eye


def test_labels_that_are_no_integers_are_refused():
    with pytest.raises(SkerchError, match=r"dtype torch\.float32"):
        label_weight()((torch.ones(3), torch.ones(3)))


def test_compiled_parts_of_a_model_run_as_they_were():
    model, x, y = network(nn.Tanh())
    names = [name for name, _ in model.named_parameters()]
    expected = dense_hessian(model, names, (x, y), CROSS_ENTROPY)
    model[0] = torch.compile(model[0], backend="aot_eager")
    compiled = torch.compile(model, backend="aot_eager")
    op = HessianOperator(compiled, [(x, y)], CROSS_ENTROPY)
    torch.testing.assert_close(op @ torch.eye(43).double(), expected)
