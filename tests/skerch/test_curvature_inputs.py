"""What the curvature operators are given: batches and their weights, and selected parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerch.curvature import (
    count_examples,
    label_weight,
    params_to_vector,
    select_parameters,
    split_batch,
    to_device,
    vector_to_params,
)
from skerch.errors import SkerchError


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def test_split_batches_slice_every_tensor_of_the_tree():
    batch = {
        "x": torch.arange(5),
        "pair": [torch.arange(10).view(5, 2), "kept"],
        "t": torch.ones(()),
    }
    parts = split_batch(batch, 2)
    assert [count_examples(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])
    assert torch.equal(torch.cat([part["pair"][0] for part in parts]), batch["pair"][0])
    assert all(part["pair"][1] == "kept" and part["t"] == 1 for part in parts)


def test_to_device_converts_floating_tensors_only():
    x, (y, flag) = to_device((torch.ones(2), [torch.arange(2), True]), "cpu", torch.float64)
    assert (x.dtype, y.dtype, flag) == (torch.float64, torch.int64, True)


def test_parameters_survive_the_way_through_a_vector():
    model = mlp()
    params = select_parameters(model, "*.weight")
    vector = params_to_vector(params)
    assert torch.equal(vector, torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]))
    vector_to_params(vector + 1, params)
    assert torch.equal(params_to_vector(params), vector + 1)
    assert all(p.requires_grad and p.grad_fn is None for p in params.values())


def test_frozen_parameters_are_not_selected():
    model = mlp()
    model[0].requires_grad_(False)
    assert list(select_parameters(model)) == ["2.weight", "2.bias"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_batch(torch.ones(3), 0), "batches of 0; the least size is 1"),
        (lambda: split_batch((torch.ones(3), torch.ones(2)), 1), r"3 examples has .* \(2,\)"),
        (
            lambda: vector_to_params(torch.ones(3), {"a": nn.Parameter(torch.ones(2))}),
            r"not \(3,\)",
        ),
        (lambda: label_weight()((torch.ones(3), torch.ones(3))), "dtype torch.float32"),
    ],
)
def test_helpers_refuse_in_a_sentence(call, message):
    with pytest.raises(SkerchError, match=message):
        call()
