"""Parameters selected by name, and as one vector."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from skerch.curvature import (
    HessianOperator,
    load_vector,
    match_names,
    match_regex,
    params_to_vector,
    select_parameters,
    total_size,
    vector_to_params,
)
from skerch.errors import SkerchError

from .cases import mlp


def test_parameters_survive_the_way_through_a_vector():
    model = mlp()
    params = select_parameters(model, "*.weight")
    vector = params_to_vector(params)
    assert torch.equal(vector, torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]))
    parts = vector_to_params(vector, params)
    assert total_size(params) == total_size(parts.values()) == len(vector)
    assert all(torch.equal(parts[name], p) for name, p in params.items())
    load_vector(vector + 1, params)
    assert torch.equal(params_to_vector(params), vector + 1)
    assert all(p.requires_grad and p.grad_fn is None for p in params.values())


def test_frozen_parameters_are_not_selected():
    model = mlp()
    model[0].requires_grad_(False)
    assert list(select_parameters(model)) == ["2.weight", "2.bias"]


def test_patterns_with_an_exclamation_mark_take_away():
    model = nn.ModuleDict({"body": mlp(), "head": nn.Linear(3, 2)})
    assert list(select_parameters(model, "!body.*")) == ["head.weight", "head.bias"]
    assert list(select_parameters(model, ["!*.bias", "body.*", "!body.2.*"])) == ["body.0.weight"]
    by_class = list(select_parameters(model, ["body.[!0].*", "!*.weight"]))
    assert by_class == ["body.2.bias"]
    with pytest.raises(SkerchError, match=r"'!tail\.\*' matches no trainable parameter"):
        select_parameters(model, ["*", "!tail.*"])
    with pytest.raises(SkerchError, match=r"'head\.bias', '!\*\.bias' leave no parameter"):
        select_parameters(model, ["head.bias", "!*.bias"])


@pytest.mark.parametrize(
    ("param_filter", "names"),
    [
        (match_names("0.*", "*.bias"), ["0.weight", "0.bias", "2.bias"]),
        (match_regex(r"^2", "t$"), ["0.weight", "2.weight", "2.bias"]),
        (lambda name, p: p.ndim == 1, ["0.bias", "2.bias"]),
    ],
)
def test_filters_are_callables_of_a_name_and_its_parameter(param_filter, names):
    assert list(select_parameters(mlp(), param_filter)) == names


def test_a_filter_that_takes_nothing_is_refused_with_the_names_there_are():
    with pytest.raises(SkerchError, match=r"zero parameters.* 0\.weight, 0\.bias, 2\.weight"):
        select_parameters(mlp(), match_names("head.*"))


def test_complex_parameters_are_refused_by_name_and_can_be_left_out():
    model = nn.ModuleList([nn.Linear(4, 3, dtype=torch.complex64), nn.Linear(3, 2)])
    for patterns in (None, "*.weight"):
        with pytest.raises(SkerchError, match=r"parameter 0\.weight is complex.*view_as_real"):
            select_parameters(model, patterns)
    assert list(select_parameters(model, "!0.*")) == ["1.weight", "1.bias"]


@pytest.mark.parametrize(
    ("lazy", "name"),
    [(nn.LazyConv2d(3, 2), r"1\.weight"), (nn.LazyBatchNorm1d(affine=False), r"1\.running_mean")],
)
def test_shapes_that_are_not_known_yet_are_refused(lazy, name):
    model = nn.Sequential(nn.Linear(4, 4), lazy)
    with pytest.raises(SkerchError, match=f"The model's {name} has no shape .* build the network"):
        HessianOperator(model, [torch.ones(2, 4)], lambda model, x: model(x).mean())


@pytest.mark.parametrize("shape", [(3,), (2, 1)])
@pytest.mark.parametrize("take", [load_vector, vector_to_params])
def test_vectors_of_another_shape_are_refused(take, shape):
    words = f"2 elements and take a 1-D vector .* not {re.escape(str(shape))}"
    with pytest.raises(SkerchError, match=words):
        take(torch.ones(shape), {"a": nn.Parameter(torch.ones(2))})
