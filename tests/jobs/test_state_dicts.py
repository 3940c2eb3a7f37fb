"""State dicts as others save them: loaded to the same numbers, or refused in one sentence."""

import argparse
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from skerch.jobs.problems import load_problem
from skerch.jobs.training.state_dicts import StateDictError, load_into


def network():
    """Parameters, running statistics, a count, and a mask of infinities."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    return model


@pytest.fixture
def trained():
    """A network whose numbers are not those of a new one."""
    model = network()
    for _ in range(3):
        model(torch.randn(5, 3))
    return model


@pytest.fixture
def state(trained):
    """Its state dict."""
    return trained.state_dict()


def load(content, model=None, path="net_1.pt"):
    """A new network's state after a file of this content."""
    torch.save(content, path)
    model = network() if model is None else model
    load_into(model, Path(path))
    return model.state_dict()


def same(found, expected):
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in expected)


def named(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"net": s, "acc": 91.5, "epoch": 7},  # kuangliu's CIFAR-10
        lambda s: {"model": named("_orig_mod.", s), "best_val_loss": torch.tensor(1.0)},  # nanoGPT
        lambda s: {"state_dict": named("network.", s), "hyper_parameters": {"lr": 0.1}},
        lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1), "version": 2},  # timm
        lambda s: {"model_state": s, "optimizer_state": {"state": {0: torch.ones(1)}}},
        lambda s: {"model": {"state_dict": named("module._orig_mod.", s)}},
        lambda s: {"module": named("encoder.body.", s), "ema": {n: 0 * v for n, v in s.items()}},
        lambda s: {"model": s, "model_ema": {n: 0 * v for n, v in s.items()}},
        lambda s: named("model._orig_mod.module.", s),
    ],
)
def test_wrappers_and_prefixes_are_taken_off(wrap, state):
    assert same(load(wrap(state)), state)


class Compiled(nn.Module):
    """Its names are those of a module under torch.compile, whose import takes seconds."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model


def test_what_torch_inserts_into_names_is_taken_out_on_either_side(trained, state):
    assert same(load(nn.DataParallel(Compiled(trained)).state_dict()), state)
    inside = copy.deepcopy(trained)
    inside[3] = Compiled(inside[3])
    assert same(load(inside.state_dict()), state)
    assert same(load(state, Compiled(network())), named("_orig_mod.", state))
    assert same(load(state, nn.ModuleDict({"net": network()})), named("net.", state))


def test_half_precision_and_counts_of_another_type_are_read(state):
    half = {name: value.half() for name, value in state.items()}
    expected = {name: half[name].to(value.dtype) for name, value in state.items()}
    assert same(load(half), expected)
    del half["1.num_batches_tracked"]  # as before torch 0.4.1
    assert load(half)["1.num_batches_tracked"] == 0


def test_safetensors_are_read(state):
    save_file(named("model.", state), "net.safetensors")
    model = network()
    load_into(model, Path("net.safetensors"))
    assert same(model.state_dict(), state)
    content = Path("net.safetensors").read_bytes()
    Path("net.safetensors").write_bytes(content[:-1])
    with pytest.raises(StateDictError, match=r"net\.safetensors cannot be read: "):
        load_into(network(), Path("net.safetensors"))


def tied():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    return model


def test_of_tied_tensors_one_is_enough_and_two_must_agree():
    model = tied()
    save_model(model, "net.safetensors")  # leaves one out
    found = tied()
    load_into(found, Path("net.safetensors"))
    assert same(found.state_dict(), model.state_dict())
    untied = {"0.weight": torch.ones(6, 4), "1.weight": torch.zeros(6, 4)}
    with pytest.raises(StateDictError, match=r"net_1\.pt holds 1\.weight and 0\.weight with diff"):
        load(untied, tied())


class Code:
    """What only an unsafe unpickler would load."""


def without(name):
    return lambda s: {key: value for key, value in s.items() if key != name}


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda s: {"ema_state_dict": s, "step": 3},
         r"no state dict as model, .* it has 2 entries: ema_state_dict, step\. Save"),
        (lambda s: {"model": s, "net": s},
         r"several state dicts that fit alike: model, net; save"),
        (lambda s: {"state_dict": named("model.", s) | {"loss.weight": torch.ones(2)}},
         r"\(read as state_dict, without model\.\) does .* not the network's 1 \(loss\.weight\)"),
        (lambda s: s | {"0.weight": torch.ones(5, 3)},
         r"does not fit .*: of another shape 1 \(0\.weight \(5, 3\) instead of \(4, 3\)\)\. Build"),
        (without("0.bias"), r"does not fit .*: missing 1 of 10 \(0\.bias\)\. Build"),
        (lambda s: {f"block{i}.w": torch.ones(1) for i in range(90)},
         r"missing 10 of 10 \(mask, 0\.weight, 0\.bias, …\), not the network's 90 \(block0\.w, b"),
        (lambda s: s | {"3.bias": s["3.bias"] / 0},
         r"holds values of 3\.bias that are not finite; take an earlier"),
        (lambda s: s | {"3.bias": torch.zeros(2, dtype=torch.int8)},
         r"holds 3\.bias as torch\.int8, where .* has torch\.float32; save its values"),
        (lambda s: s | {"3.bias": torch.zeros(2, dtype=torch.complex64)},
         r"holds 3\.bias as torch\.complex64"),
        (lambda s: {"state_dict": s, "accuracy": np.float64(0.9)},
         r"more than tensors \(numpy\.\S+\), or is damaged; save model\.state_dict\(\) alone"),
        (lambda s: network(), r"more than tensors \(torch\.nn\.modules\.container\.Sequential\)"),
        (lambda s: Code(), r"more than tensors \(.*Code\)"),
        (lambda s: torch.ones(3), r"holds a Tensor, not a state dict"),
        (lambda s: {3: torch.ones(3)}, r"holds a dict, not a state dict"),
        (lambda s: {}, r"has no state dict"),
    ],
)  # fmt: skip
def test_what_is_no_state_dict_of_the_network_is_one_sentence(wrap, words, state):
    with pytest.raises(StateDictError, match=words) as caught:
        load(wrap(state))
    assert str(caught.value).startswith("net_1.pt")
    assert len(str(caught.value)) < 400


def test_an_average_over_steps_is_no_networks_state(trained):
    with pytest.raises(StateDictError, match=r"not the network's 1 \(n_averaged\)"):
        load(AveragedModel(trained).state_dict())


def test_a_damaged_state_dict_is_refused():
    model = load_problem({"name": "digits_mlp"}).model()
    torch.save(model.state_dict(), "net_1.pt")
    content = bytearray(Path("net_1.pt").read_bytes())
    weight = content.find(model[-1].weight.detach().numpy().tobytes())
    content[weight] ^= 1
    Path("net_1.pt").write_bytes(content)
    with pytest.raises(StateDictError, match=r"net_1\.pt is damaged"):
        load_into(model, Path("net_1.pt"))
