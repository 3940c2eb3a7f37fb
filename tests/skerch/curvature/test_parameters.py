"""Parameters selected by name, and as one vector."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerch.curvature import (
    HessianOperator,
    params_to_vector,
    select_parameters,
    vector_to_params,
)
from skerch.errors import SkerchError

from .cases import mlp


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


def test_vectors_of_another_length_are_refused():
    with pytest.raises(SkerchError, match=r"not \(3,\)"):
        vector_to_params(torch.ones(3), {"a": nn.Parameter(torch.ones(2))})
