"""Whatever an experiment file or an override holds: it is done, or refused in a sentence."""

import os
import tempfile
from dataclasses import fields, is_dataclass
from typing import get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from skerch.jobs import config as configs
from skerch.jobs.config.schema import Config

PROBLEM = """
import torch
from torch.utils.data import TensorDataset
from skerch.jobs.problems import Problem

def make():
    torch.manual_seed(0)
    tensors = torch.randn(24, 3), torch.randn(24, 1)
    return Problem(
        model=lambda: torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
        ),
        data=lambda split: TensorDataset(*tensors),
        loss_fn=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
    )
"""
SMALL = {
    "problem": {"factory": "fuzzed:make"},
    "training": {"max_steps": 2, "batch_size": 6, "record_steps": [2]},
    "hessian": {"datapoints": 12, "subset": "first", "splits": ["test"], "strategy": "loop"},
    "sketch": {"outer": 3, "probes": 2, "block_size": 2},
}


def leaves(section=Config, prefix=""):
    """Each key of the schema with its type and the words that it may be."""
    hints = get_type_hints(section)
    for f in fields(section):
        if is_dataclass(hints[f.name]):
            yield from leaves(hints[f.name], f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, (hints[f.name], f.metadata.get("choices"))


KEYS = dict(leaves())
SECTIONS = sorted({key.partition(".")[0] for key in KEYS})
WORDS = [  # that YAML, omegaconf, the file system or a key take for something
    *("${sketch.outer}", "${", "${oc.env:HOME}", "${nowhere}", "${training}", "???", "~", "*"),
    *("..", "../up", "/", "/dev/null/x", "~nobody/x", "a\nb", "\0", "\x85\u2028", "é" * 130),
    *("!!python/object/apply:os.mkdir [pwned]", "!!set", "!!binary aGk=", "[", "{", "- a"),
    *("1e3", "0b_", "2020-01-01", ".nan", "yes", "null", "'", '"', "#", "x" * 3000, "a/" * 2000),
    *("auto", "cpu", "cuda:7", "mps", "loop", "batched", "train", "oversampled", "gaussian", "&a"),
    *("SGD", "Adam", "LBFGS", "local", "digits_mlp", "mnist_mini", "fuzzed:make", "os:x", "a:b"),
]  # fmt: skip
BOUNDS = [2**31 - 1, 2**31, 2**63, -(2**70), 10**400]


def mostly(usual, rare):
    """One value in eight is of the rare kind."""
    return st.integers(0, 7).flatmap(lambda number: usual if number else rare)


SCALARS = (
    st.none() | st.booleans() | st.integers(-2, 40) | st.sampled_from(BOUNDS) | st.floats()
    | st.text(max_size=8) | st.sampled_from(WORDS)
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=5,
)
TYPES = {
    int: mostly(st.integers(0, 9), st.sampled_from(BOUNDS)),
    float: mostly(st.floats(1e-3, 1), st.floats()),
    bool: st.booleans(),
    str: st.sampled_from(WORDS) | st.text(max_size=8),
    type(None): st.none(),
}


def typed(hint, choices=None):
    """Values of a type, within bounds and beyond."""
    if choices:
        return mostly(st.sampled_from(list(choices)), TYPES[str])
    if hint in TYPES:
        return TYPES[hint]
    if get_origin(hint) is list:
        return st.lists(typed(*get_args(hint)), max_size=3)
    if get_origin(hint) is dict:
        names = st.sampled_from(["name", "factory", "root", "measure", "momentum"])
        return st.dictionaries(names | st.text(max_size=4), ANYTHING, max_size=2)
    return st.one_of(*map(typed, get_args(hint)))


RIGHT_TYPE = st.sampled_from(list(KEYS)).flatmap(
    lambda key: st.tuples(st.just(key), typed(*KEYS[key]))
)
WRONG_TYPE = st.tuples(st.sampled_from([*KEYS, *SECTIONS]), ANYTHING)
WRONG_KEY = st.tuples(
    st.sampled_from(list(KEYS)).map(lambda key: key[:-1]) | st.text(max_size=6), ANYTHING
)
CHANGE = mostly(RIGHT_TYPE, WRONG_TYPE | WRONG_KEY)
CHANGES = st.lists(CHANGE, max_size=3).map(dict)


def changed(changes):
    """The small experiment as plain mappings, with keys.by.path set."""
    tree = {key: dict(section) for key, section in SMALL.items()}
    for path, value in changes.items():
        *sections, leaf = path.split(".")
        node = tree
        for name in sections:
            if not isinstance(node.get(name), dict):
                node[name] = {}
            node = node[name]
        node[leaf] = value
    return tree


def override(key, value, python):
    """An override as somebody would type it, or try to, or as a Python script writes it."""
    plain = python or value in WORDS
    text = str(value) if plain else yaml.safe_dump(value, default_flow_style=True)
    return f"{key}={text.strip().removesuffix('...').strip()}"


@st.composite
def torn(draw):
    """The text of an experiment file with pieces taken out and put in."""
    text = yaml.safe_dump(changed(draw(CHANGES)))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        stop = start + draw(st.integers(0, 12))
        text = text[:start] + draw(st.sampled_from(WORDS) | st.text(max_size=4)) + text[stop:]
    return text


TEXT = CHANGES.map(changed).map(yaml.safe_dump)
TEXTS = mostly(TEXT, torn() | ANYTHING.map(yaml.safe_dump))
OVERRIDE = st.tuples(CHANGE, st.booleans()).map(lambda drawn: override(*drawn[0], drawn[1]))
OVERRIDES = st.lists(mostly(OVERRIDE, st.sampled_from(WORDS)), max_size=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that the commands run in, with a small problem."""
    folder, before = tmp_path_factory.mktemp("fuzz"), os.getcwd()
    (folder / "fuzzed.py").write_text(PROBLEM)
    os.chdir(folder)
    yield folder
    os.chdir(before)


def examples(number):
    return settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))


def accepted(result):
    """Whether a command did it; if not, that it says why in a few lines."""
    status, out, err = result
    assert status in (0, 1, 2)
    assert "Traceback" not in out + err
    if status:
        assert err.startswith("error: ")
        assert err.count("\n") <= 3
        assert len(err) < 1000
    return not status


@pytest.mark.parametrize("number", [50, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_experiment_is_planned_or_refused_in_a_sentence(number, folder, skerch):
    @examples(number)
    @given(TEXTS, OVERRIDES)
    def plan(text, overrides):
        (folder / "fuzzed.yaml").write_bytes(text.encode(errors="surrogatepass"))
        if accepted(skerch("plan", "--", "fuzzed.yaml", *overrides)):
            config, saved = configs.load("fuzzed.yaml", overrides), folder.with_suffix(".yaml")
            configs.save(config, saved)
            again = configs.load_resolved(saved)
            assert again == config
            identities = (configs.identity(config, "method") for config in (config, again))
            assert configs.difference(*identities) == []
        assert {path.name for path in folder.iterdir()} <= {
            "fuzzed.py",
            "fuzzed.yaml",
            "__pycache__",
        }

    plan()


@pytest.mark.parametrize("number", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_any_experiment_that_can_be_planned_runs_or_fails_in_a_sentence(number, folder, skerch):
    kept_small = ["training.max_steps=3", "launcher.workers=1"]

    @examples(number)
    @given(TEXT)
    def run(text):
        (folder / "fuzzed.yaml").write_text(text)
        run_dir = tempfile.mkdtemp(dir=folder.parent)
        arguments = ["fuzzed.yaml", *kept_small, f"run_dir={run_dir}"]
        assume(accepted(skerch("plan", *arguments)))
        assert skerch("check", *arguments)[0] in (0, 1, 2)
        result = skerch("run", *arguments)
        assert "the traceback is in" not in result[2]
        if accepted(result):
            assert accepted(skerch("run", *arguments))

    run()
