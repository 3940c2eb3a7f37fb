"""What a forward pass leaves behind: rows, slopes and weights of positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerch.errors import SkerchError
from skerch.kronecker.layers import find_layers
from skerch.kronecker.recorder import position_mask, recording

N = 3


def recorded(model, x, mask=None):
    """Its layers by name, the record, and the output."""
    layers = find_layers(model, dict(model.named_parameters())).covered
    with recording(model, layers, mask) as record:
        z = model(x)
    return {layer.name: layer for layer in layers}, record, z


def summed(record, layer, g):
    """Σ_t g aᵀ of each score and example."""
    return torch.einsum("bntgo,ntgi->bngoi", g, record.rows(layer))


def gradients(model, layer, z, r):
    """The same by autograd, for each score and example."""
    params = dict(model.named_parameters())
    own = [params[name] for name in layer.shapes]
    found = [
        [torch.autograd.grad(z[i], own, r_b[i], retain_graph=True) for i in range(len(z))]
        for r_b in r
    ]
    stacked = [
        torch.stack([torch.stack([e[k] for e in per_score]) for per_score in found])
        for k in range(len(own))
    ]
    return layer.matrix(dict(zip(layer.shapes, stacked, strict=True)))


class Slow(torch.autograd.Function):
    """The identity, whose backward pass cannot be vectorised."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        float(g.sum())
        return g


class Through(nn.Module):
    def forward(self, x):
        return Slow.apply(x)


MODELS = {
    "in place": (nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)), (N, 4)),
    "convolutions in place": (
        nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4).eval()),
            *(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 2)),
        ),
        (N, 2, 4, 4),
    ),
    "not vectorised": (nn.Sequential(nn.Linear(4, 5), Through(), nn.Linear(5, 2)), (N, 4)),
}


@pytest.mark.parametrize("scores", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_slopes_of_several_scores_are_those_of_each(name, scores):
    torch.manual_seed(0)
    model, shape = MODELS[name]
    model = model.double()
    layers, record, z = recorded(model, torch.randn(shape).double())
    r = torch.randn(scores, *z.shape).double()
    found = {layer.name: g for layer, g in record.slopes(z, r)}
    assert found.keys() == layers.keys()
    for name, layer in layers.items():
        exact = gradients(model, layer, z, r)
        torch.testing.assert_close(
            summed(record, layer, found[name]), exact, rtol=1e-12, atol=1e-12
        )


def test_calls_of_shared_parameters_are_positions_of_one_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.LayerNorm(3)).double()
    model[2].weight, model[2].bias = model[0].weight, model[0].bias
    model.append(model[3])
    layers, record, z = recorded(model, torch.randn(N, 3).double())
    r = torch.randn(2, *z.shape).double()
    assert record.rows(layers["0"]).shape == (N, 2, 1, 4)
    for layer, g in record.slopes(z, r):
        exact = gradients(model, layer, z, r)
        torch.testing.assert_close(summed(record, layer, g), exact, rtol=1e-12, atol=1e-12)
    assert g.shape == (2, N, 1, 1, 6)  # of norms, the sum over calls


def test_inputs_that_are_flattened_have_their_examples_again():
    model = nn.Sequential(
        nn.Flatten(0, 1), nn.Linear(3, 2), nn.LayerNorm(2), nn.Unflatten(0, (N, 4))
    )
    _, record, z = recorded(model.double(), torch.randn(N, 4, 3).double())
    record.n = N
    r = torch.randn(2, *z.shape).double()
    for layer, g in record.slopes(z, r):
        exact = gradients(model, layer, z, r)
        torch.testing.assert_close(summed(record, layer, g), exact, rtol=1e-12, atol=1e-12)


def test_padding_has_no_weight_and_other_positions_share_that_of_their_example():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    model = nn.Sequential(nn.Linear(2, 3), nn.Flatten(), nn.Linear(12, 1))
    layers, record, _ = recorded(model, torch.randn(N, 4, 2), mask.bool())
    masses = torch.tensor([0.5, 0.25, 0.25])
    weights = {n: record.weights(x, record.rows(x), masses) for n, x in layers.items()}
    assert weights["0"].tolist() == [[0.25, 0.25, 0, 0], [0.0625] * 4, [0] * 4]
    assert weights["2"].tolist() == [[0.5], [0.25], [0.25]]  # it has one position


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: (b, torch.zeros(2)), lambda b: [1, b]])
def test_the_mask_of_positions_is_the_attention_mask_of_a_batch(wrap):
    batch = {"attention_mask": torch.tensor([[1, 0], [1, 1]]), "input_ids": torch.ones(2, 2)}
    assert position_mask(wrap(batch)).tolist() == [[True, False], [True, True]]
    assert position_mask(wrap({"input_ids": torch.ones(2, 2)})) is None


def test_what_the_output_is_no_function_of_has_zeros():
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 3)})
    layers = find_layers(model, dict(model.named_parameters())).covered
    x = torch.randn(N, 2)
    with recording(model, layers) as record:
        model["b"](x)
        z = model["a"](x)
    slopes = {layer.name: g for layer, g in record.slopes(z, torch.ones(2, *z.shape))}
    assert torch.equal(slopes["b"], torch.zeros(2, N, 1, 1, 3))


def test_calls_without_a_gradient_are_not_recorded():
    model = nn.Linear(2, 2)
    with recording(model, find_layers(model, dict(model.named_parameters())).covered) as record:
        with torch.no_grad():
            model(torch.randn(N, 2))
        model(torch.randn(N, 2))
    assert len(record.calls) == 1


def test_a_checkpointed_module_is_recorded_once():
    model = nn.Linear(2, 2)
    (layer,) = find_layers(model, dict(model.named_parameters())).covered
    with recording(model, [layer]) as record:
        z = torch.utils.checkpoint.checkpoint(model, torch.randn(N, 2), use_reentrant=False)
    for _ in range(2):
        ((_, g),) = record.slopes(z, torch.ones(2, *z.shape))
        assert torch.equal(g[:, :, 0, 0], torch.ones(2, *z.shape))
    assert len(record.calls) == 1


def test_autocast_gives_slopes_of_its_precision():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.autocast("cpu", torch.bfloat16):
        _, record, z = recorded(model, torch.randn(N, 4))
    r = torch.randn(2, *z.shape).to(z)
    for layer, g in record.slopes(z, r):
        exact = gradients(model, layer, z, r)
        found = summed(record, layer, g.float())
        torch.testing.assert_close(found, exact.float(), rtol=0.05, atol=0.05)


def test_a_module_within_vmap_is_refused():
    model = nn.Linear(2, 2)
    layers = find_layers(model, dict(model.named_parameters())).covered
    with pytest.raises(SkerchError, match="within a transformation"), recording(model, layers):
        torch.vmap(model)(torch.randn(N, 2))
