"""Problems: the bundled ones, a user's own, and what is said of those that do not work."""

import sys

import pytest
import torch

from skerch.jobs.problems import Problem, load_problem, names
from skerch.jobs.schema import ConfigError


def parameters(problem: Problem) -> int:
    return sum(p.numel() for p in problem.model().parameters())


def test_the_registry_is_the_folder():
    assert names() == ["digits_mlp", "mnist_mini"]


def test_digits_are_split_and_scaled():
    problem = load_problem({"name": "digits_mlp"})
    assert parameters(problem) == 1930
    train, test = problem.data("train"), problem.data("test")
    assert (len(train), len(test)) == (1198, 599)
    assert torch.equal(train.targets, train.tensors[1])
    assert (train.tensors[0].min(), train.tensors[0].max()) == (0, 1)
    assert test.targets.bincount().min() >= 50
    assert problem.loss_fn(problem.model(), test[:7]).shape == ()


def test_mnist_mini_is_mnist_at_16x16(mnist):
    problem = load_problem({"name": "mnist_mini", "root": str(mnist)})
    assert parameters(problem) == 7030
    train, test = problem.data("train"), problem.data("test")
    assert train.tensors[0].shape == (8000, 1, 16, 16)
    assert len(test) == 2000
    images = train.tensors[0]
    assert 0 <= images.min() < images.max() <= 1
    raw = (mnist / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()[16:]
    mean = torch.frombuffer(bytearray(raw), dtype=torch.uint8).float().mean() / 255
    assert images.mean() == pytest.approx(float(mean), abs=1e-3)


def test_mnist_that_is_not_there_is_one_sentence(tmp_path):
    problem = load_problem({"name": "mnist_mini", "root": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"problem\.root: .*problem\.download=true"):
        problem.data("train")
    with pytest.raises(ConfigError, match=r"problem\.root is missing"):
        load_problem({"name": "mnist_mini"}).data("train")


def test_missing_torchvision_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    problem = load_problem({"name": "mnist_mini", "root": "."})
    assert parameters(problem) == 7030
    with pytest.raises(ConfigError, match=r"pip install torchvision"):
        problem.data("train")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a user's module into a folder of its own; its import is undone afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    written = []

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return str(tmp_path)

    yield write
    for name in written:
        sys.modules.pop(name, None)


OWN = """
import torch
from own_layers import WIDTH
from skerch.jobs.problems import Problem

def make(depth, scale=1.0):
    return Problem(lambda: torch.nn.Linear(WIDTH, depth), lambda split: None, lambda m, b: m(b))
"""


def test_a_users_factory_comes_from_its_own_folder(module):
    module("own_layers", "WIDTH = 3")
    folder = module("own_problem", OWN)
    problem = load_problem({"factory": "own_problem:make", "depth": 4}, folder)
    assert parameters(problem) == 16


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({"name": "digits_mlp", "depth": 2}, r"no key problem\.depth"),
        ({"factory": "own2:make", "deep": 2}, r"problem\.deep; did you mean problem\.depth\?"),
        ({"factory": "own2:make"}, r"problem\.depth is missing; make needs it"),
        ({"factory": "own2:mak"}, r"own2\.py has no function mak"),
        ({"factory": "own3:make"}, r"own3:make cannot be imported: ModuleNotFoundError: .*own3"),
        ({"factory": "broken:make"}, r"broken:make .*ZeroDivisionError: .*broken\.py:2\)"),
        ({"factory": "own2:nothing"}, r"returned a NoneType; it must return .*Problem"),
        ({"factory": "own2:fails"}, r"problem failed: KeyError: 'x' .*own2\.py:\d+\)"),
        ({"factory": "own2"}, r"must be module:function"),
        ({}, r"either name or factory"),
    ],
)
def test_a_problem_that_cannot_be_had_is_one_sentence(problem, words, module):
    module("broken", "\n1 / 0\n")
    text = OWN.replace("own_layers", "own_layers2")
    module("own_layers2", "WIDTH = 3")
    folder = module("own2", f"{text}\ndef nothing(): pass\n\ndef fails(): return {{}}['x']\n")
    with pytest.raises(ConfigError, match=words) as caught:
        load_problem(problem, folder)
    assert "\n" not in str(caught.value)
