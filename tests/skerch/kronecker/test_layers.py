"""Layers of every kind: W as a matrix, and G = Σ_t g aᵀ against autograd, example by example."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from skerch.kronecker.layers import find_layers, layer_from_json
from skerch.kronecker.layers.norm import NormLayer
from skerch.kronecker.recorder import recording

N = 4
CASES = {
    "linear": (nn.Linear(3, 4), (N, 3)),
    "linear of sequences": (nn.Linear(3, 4), (N, 2, 5, 3)),
    "linear without bias": (nn.Linear(3, 4, bias=False), (N, 2, 3)),
    "conv1d": (nn.Conv1d(2, 3, 3, stride=2, padding=1), (N, 2, 7)),
    "conv2d": (nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 2)), (N, 2, 6, 5)),
    "conv2d dilated": (nn.Conv2d(2, 3, 3, stride=2, padding=2, dilation=(2, 1)), (N, 2, 6, 7)),
    "conv2d grouped": (nn.Conv2d(4, 6, (2, 3), groups=2), (N, 4, 5, 4)),
    "conv2d depthwise": (nn.Conv2d(3, 6, 3, groups=3, padding=1, bias=False), (N, 3, 4, 4)),
    "conv2d same": (nn.Conv2d(2, 3, (4, 2), padding="same", dilation=(1, 3)), (N, 2, 5, 6)),
    "conv2d valid": (nn.Conv2d(2, 3, 2, padding="valid"), (N, 2, 4, 4)),
    **{
        f"conv2d {mode}": (
            nn.Conv2d(2, 2, (2, 3), stride=2, padding=(1, 2), padding_mode=mode),
            (N, 2, 5, 6),
        )
        for mode in ("reflect", "replicate", "circular")
    },
    "conv1d same circular": (
        nn.Conv1d(2, 2, 4, padding="same", padding_mode="circular"),
        (N, 2, 6),
    ),
    "conv3d": (nn.Conv3d(2, 4, (2, 1, 3), padding=1, groups=2), (N, 2, 3, 3, 4)),
    "layer norm": (nn.LayerNorm(5), (N, 3, 5)),
    "layer norm of vectors": (nn.LayerNorm(5), (N, 5)),
    "layer norm of matrices": (nn.LayerNorm((3, 5)), (N, 2, 3, 5)),
    "layer norm without bias": (nn.LayerNorm(5, bias=False), (N, 3, 5)),
    "rms norm": (nn.RMSNorm(5), (N, 3, 5)),
    "rms norm with eps": (nn.RMSNorm((2, 5), eps=0.1), (N, 3, 2, 5)),
    "group norm": (nn.GroupNorm(2, 4), (N, 4, 3, 2)),
    "batch norm": (nn.BatchNorm2d(3).eval(), (N, 3, 2, 4)),
    "batch norm of vectors": (nn.BatchNorm1d(3).eval(), (N, 3)),
    "instance norm": (nn.InstanceNorm1d(3, affine=True), (N, 3, 5)),
    "instance norm that tracks": (
        nn.InstanceNorm2d(3, affine=True, track_running_stats=True).eval(),
        (N, 3, 5, 2),
    ),
    "embedding": (nn.Embedding(6, 3), (N, 5)),
    "embedding of one index": (nn.Embedding(6, 3), (N,)),
    "embedding with padding": (nn.Embedding(6, 3, padding_idx=2), (N, 5)),
    "transformers' conv1d": ("Conv1D", (N, 2, 3)),
}


@pytest.fixture
def made(needs):
    """Of a case by name: a module with entries that are all different, and an input."""

    def make(name):
        module, shape = CASES[name]
        if module == "Conv1D":
            needs(find_spec("transformers"), "Transformers: pip install transformers")
            module = import_module("transformers.pytorch_utils").Conv1D(4, 3)
        torch.manual_seed(0)
        module = module.double()
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 1.5)
        if isinstance(module, nn.Embedding):
            return module, torch.randint(6, shape)
        return module, torch.randn(shape).double().requires_grad_()

    return make


def gradients(layer, record, z, r):
    """G_i (n, groups, outputs, inputs) by the record."""
    ((_, g),) = record.slopes(z, r[None])
    a = record.rows(layer)
    if layer.indices:
        a = nn.functional.one_hot(a, layer.shape[2])[:, :, None].double()
    assert a.shape[2:] == (layer.shape[0], layer.shape[2])
    assert g.shape[3:] == layer.shape[:2]
    return torch.einsum("ntgo,ntgi->ngoi", g[0], a)


@pytest.mark.parametrize("only", ["all", "weight", "bias", "no bias"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_examples_are_sums_of_slopes_and_rows(name, only, made):
    module, x = made(name)
    params = {n: p for n, p in module.named_parameters() if only in ("all", "no bias", n)}
    if not params:  # a bias alone, of a module without
        return
    layers = find_layers(module, params, include_bias=only != "no bias")
    (layer,) = layers.covered
    left_out = only == "no bias" and "bias" in params and not isinstance(layer, NormLayer)
    assert [*layers.uncovered] == ["bias"] * left_out
    with recording(module, [layer]) as record:
        z = module(x)
    r = torch.randn_like(z)
    G = gradients(layer, record, z, r)
    for i in range(N):
        exact = torch.autograd.grad((z[i] * r[i]).sum(), list(params.values()), retain_graph=True)
        exact = dict(zip(params, exact, strict=True))
        torch.testing.assert_close(G[i], layer.matrix(exact), rtol=1e-12, atol=1e-12)
        for parameter, tensor in layer.tensors(G[i]).items():
            torch.testing.assert_close(tensor, exact[parameter], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_matrices_and_tensors_are_inverse(name, made):
    module, _ = made(name)
    (layer,) = find_layers(module, dict(module.named_parameters())).covered
    tensors = {n: torch.randn(2, 3, *shape) for n, shape in layer.shapes.items()}
    matrix = layer.matrix(tensors)
    assert matrix.shape == (2, 3, *layer.shape)
    assert {n: t.shape for n, t in layer.tensors(matrix).items()} == {
        n: t.shape for n, t in tensors.items()
    }
    assert all(torch.equal(t, tensors[n]) for n, t in layer.tensors(matrix).items())


@pytest.mark.parametrize("name", CASES)
def test_a_layer_comes_back_from_json(name, made):
    module, _ = made(name)
    (layer,) = find_layers(module, dict(module.named_parameters())).covered
    read = layer_from_json(json.loads(json.dumps(layer.to_json(), sort_keys=True)))
    assert read == layer


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d grouped"])
def test_an_input_without_a_batch_is_one_example(name, made):
    module, x = made(name)
    (layer,) = find_layers(module, dict(module.named_parameters())).covered
    with recording(module, [layer]) as record:
        z = module(x[0])
    r = torch.randn_like(z)
    exact = torch.autograd.grad(z, list(module.parameters()), r, retain_graph=True)
    exact = layer.matrix(dict(zip(dict(module.named_parameters()), exact, strict=True)))
    torch.testing.assert_close(gradients(layer, record, z, r)[0], exact, rtol=1e-12, atol=1e-12)


def test_padding_of_an_embedding_has_no_weight(made):
    module, x = made("embedding with padding")
    x = torch.tensor([[2, 1, 0], [2, 2, 2], [3, 4, 5]])
    (layer,) = find_layers(module, dict(module.named_parameters())).covered
    with recording(module, [layer]) as record:
        module(x)
    weights = record.weights(layer, record.rows(layer), torch.tensor([1.0, 1.0, 3.0]))
    assert weights.tolist() == [[0, 0.5, 0.5], [0, 0, 0], [1, 1, 1]]
