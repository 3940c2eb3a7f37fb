"""Which parameters are in a layer, and why others are in none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from skerch.curvature import FisherOperator, supervised_loss
from skerch.errors import SkerchError
from skerch.kronecker.checks import checked, layers_of
from skerch.kronecker.layers import find_layers

N = 4


def found(model, **options):
    """Its layers; each parameter is in one layer, or uncovered."""
    layers = find_layers(model, dict(model.named_parameters()), **options)
    names = [name for layer in layers.covered for name in layer.shapes] + [*layers.uncovered]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    return layers


def after_check(model, x, y_shape, **options):
    """The layers that the check lets pass, of the mean squared error on inputs x."""
    model = model.double()
    op = FisherOperator.of_loss(
        model, [(x, torch.zeros(y_shape).double())], supervised_loss(nn.functional.mse_loss)
    )
    return checked(op, find_layers(model, op.params, **options))


class Wired(nn.Module):
    """Modules, and a forward pass with them."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.wiring = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.wiring(self, x)


def test_modules_that_share_all_parameters_are_one_layer():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight, b.bias = a.weight, a.bias
    (layer,) = found(nn.Sequential(a, nn.Tanh(), b)).covered
    assert layer.modules == ("0", "2")


def test_a_weight_shared_beside_biases_that_are_not_is_in_no_layer():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    layers = found(nn.Sequential(a, b))
    assert layers.uncovered == {"0.weight": "modules use it in differing ways (0, 1)"}
    assert [(layer.weight, layer.bias) for layer in layers.covered] == [
        (None, "0.bias"),
        (None, "1.bias"),
    ]


def test_without_biases_a_weight_may_be_shared_beside_differing_ones():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    layers = found(nn.Sequential(a, b), include_bias=False)
    assert [layer.modules for layer in layers.covered] == [("0", "1")]
    assert layers.uncovered["1.bias"] == "it is the bias of a Linear, which is left out"


def test_an_embedding_tied_to_the_output_is_in_no_layer():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    layers = found(model)
    assert layers.uncovered == {"0.weight": "modules use it in differing ways (0, 1)"}
    assert [layer.bias for layer in layers.covered] == ["1.bias"]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.ConvTranspose1d(2, 3, 2), "no Kronecker factors are known of a ConvTranspose1d"),
        (nn.BatchNorm1d(3), "its module normalises by the statistics of a batch; put the model"),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), "its module normalises by the stat"),
        (nn.Embedding(3, 2, max_norm=1.0), "its module changes it in the forward pass (max_norm)"),
        (nn.Embedding(3, 2, scale_grad_by_freq=True), "its gradient is not that of the loss"),
        (nn.Embedding(3, 2, sparse=True), "its gradient is sparse"),
        (type("Own", (nn.Linear,), {"forward": lambda self, x: x})(2, 2), "its module has another"),
    ],
)
def test_modules_that_are_no_layers_say_why(module, reason):
    layers = found(module)
    assert not layers.covered
    assert all(why.startswith(reason) for why in layers.uncovered.values())


def test_a_subclass_with_the_same_forward_is_a_layer():
    assert len(found(type("Own", (nn.Linear,), {})(2, 2)).covered) == 1


def test_a_forward_put_on_a_module_is_not_that_of_its_kind():
    module = nn.Linear(2, 2)
    module.forward = lambda x: x
    assert not found(module).covered


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_parametrised_weight_is_in_no_layer_and_its_bias_in_one(norm):
    model = norm(nn.Linear(3, 2))
    layers = found(model)
    assert [(layer.weight, layer.bias) for layer in layers.covered] == [(None, "bias")]
    assert not after_check(model, torch.randn(N, 3).double(), (N, 2)).uncovered.keys() & {"bias"}


def test_the_output_projection_of_attention_is_in_no_layer():
    layers = found(nn.TransformerEncoderLayer(4, 2, 8))
    assert {name for name in layers.uncovered if "out_proj" in name} == {
        "self_attn.out_proj.weight",
        "self_attn.out_proj.bias",
    }
    assert [layer.name for layer in layers.covered] == ["linear1", "linear2", "norm1", "norm2"]


WIRINGS = {
    "without its module": lambda m, x: nn.functional.linear(x, m.a.weight, m.a.bias),
    "beside its module": lambda m, x: m.a(x) + x @ m.a.weight,
    "with examples mixed": lambda m, x: m.a(x) + m.a(x).mean(0, keepdim=True),
    "with examples behind": lambda m, x: m.a(x.expand(3, N, 3)).mean(0),
    "with one input for all": lambda m, x: x + m.a(x[:1]),
    "with more of them": lambda m, x: m.a(torch.cat([x, x[:1]]))[:N],
    "with examples permuted": lambda m, x: m.a(x).flip(0),
}


@pytest.mark.parametrize("name", WIRINGS)
def test_the_check_finds_gradients_that_are_not_those_of_calls(name):
    model = Wired(WIRINGS[name], a=nn.Linear(3, 3))
    layers = after_check(model, torch.randn(N, 3).double(), (N, 3))
    assert not layers.covered
    assert layers.uncovered.keys() == {"a.weight", "a.bias"}


RIGHT = {
    "called twice": lambda m, x: m.a(m.a(x).tanh()),
    "by keyword": lambda m, x: m.a(input=x),
    "in place": lambda m, x: m.a(x).relu_(),
    "in place at a view": lambda m, x: m.a(x).view(-1, 3).relu_(),
    "examples flattened": lambda m, x: m.a(x[:, None].expand(-1, 5, 3).reshape(-1, 3)).view(N, -1),
    "not called": lambda m, x: m.b(x),
    "partly without a gradient": lambda m, x: m.a(x + m.a(x).detach()),
    "checkpointed": lambda m, x: torch.utils.checkpoint.checkpoint(m.a, x, use_reentrant=False),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_check_lets_pass_what_is_right(name):
    model = Wired(RIGHT[name], a=nn.Linear(3, 3), b=nn.LayerNorm(3))
    shape = (N, 15) if name == "examples flattened" else (N, 3)
    assert not after_check(model, torch.randn(N, 3).double(), shape).uncovered


def test_parts_are_all_layers_at_about_the_same_cost():
    sizes = [(8, 8), (2, 2), (7, 7), (3, 3), (6, 6), (2, 5)]
    layers = found(nn.ModuleList(nn.Linear(*size) for size in sizes))
    parts = layers.partition(3)
    assert sorted(layer.name for part in parts for layer in part) == [*"012345"]
    costs = [sum(layer.cost for layer in part) for part in parts]
    assert max(costs) - min(costs) < layers.covered[0].cost / 2
    assert [len(part) for part in layers.partition(8)].count(0) == 2


def test_a_network_without_any_layer_is_refused_with_the_reasons():
    class Bilinear(nn.Bilinear):
        def forward(self, x):
            return super().forward(x, x)

    data = [(torch.randn(N, 2), torch.zeros(N, 3))]
    op = FisherOperator.of_loss(Bilinear(2, 2, 3), data, supervised_loss(nn.functional.mse_loss))
    with pytest.raises(SkerchError, match=r"No parameter is in a layer .*\(weight: no Kronecker"):
        layers_of(op)
