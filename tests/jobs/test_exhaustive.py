"""`exhaustive`: any model that can be run, every eigenvalue, made once, refused before it runs."""

from __future__ import annotations

import shutil

import pytest
import torch

from skerch.analysis.results import ExactResults, HessianResults
from skerch.jobs.commands import exhaustive
from skerch.jobs.config import load
from skerch.jobs.run_dir import RunDir

NETWORKS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from skerch.jobs.problems import Problem


class Softplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp().log1p()

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0].sigmoid() * g


def make(activation="own"):
    function = {"own": Softplus.apply, "mixed": lambda x: x @ torch.eye(5)}[activation]

    class Net(nn.Sequential):
        def forward(self, batch):
            return self[1](function(self[0](batch)))

    def data(split):
        x = torch.linspace(-1, 1, 80).view(20, 4).sin()
        return TensorDataset(x, torch.arange(20) % 3)

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return Problem(lambda: Net(nn.Linear(4, 5), nn.Linear(5, 3)), data, loss)
"""
EXPERIMENT = """
problem: {factory: "networks:make"}
training: {max_steps: 2, batch_size: 10, record_steps: [0, 2]}
hessian: {splits: [test], datapoints: 20, subset: first, strategy: loop}
sketch: {outer: 8, inner: 40}
launcher: {threads: 1}
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The experiment's file, 43 parameters, in a folder of its own."""
    (tmp_path / "networks.py").write_text(NETWORKS)
    (tmp_path / "small.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "small.yaml"


def rows(out):
    """The cells of the table's rows by name."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    return {row[0]: row[1:] for row in cells if row}


def test_every_eigenvalue_is_compared_with_an_exact_one_that_is_made_once(
    small, skerch, monkeypatch
):
    status, out, _ = skerch("exhaustive", small)
    assert status == 0
    assert "exhaustive.hessian" in out
    found = rows(out)
    ratios = [float(found[f"eigenvalue {index}"][2]) for index in range(1, 9)]
    assert ratios == pytest.approx([1] * 8, abs=1e-3)
    for name in ("dense_hessian", "hessian_rows"):
        monkeypatch.setattr(exhaustive, name, None)
    monkeypatch.setattr(torch.linalg, "eigh", None)
    status, again, _ = skerch("exhaustive", small)
    assert status == 0
    assert rows(again) == found

    first, last = (RunDir(load(small).run_dir).step("seigh", step, "test").exact for step in (0, 2))
    shutil.copy(last, first)
    status, _, err = skerch("exhaustive", small, "--step", "0")
    assert status == 1
    assert f"{first} is of other measurements" in " ".join(err.split())


def test_a_missed_eigenvalue_shows():
    """The sketch has all eigenvectors but the second, each of them exact."""
    unit, zero = torch.eye(6), [0.0] * 7
    exact = ExactResults([5.0, 4.0, 3.0, 2.0, 1.0, 0.0], zero, zero)
    sketched = HessianResults(6, [5.0, 3.0, 2.0], zero, [], [], zero, zero, zero, [])
    found = exhaustive.Comparison(sketched, exact, unit[:, [0, 2, 3]], unit[:, :3], 0.0)
    assert [pair[1:] for pair in found.eigenvalues()] == [(5.0, 5.0), (3.0, 4.0), (2.0, 3.0)]
    assert next(found.summary()) == ("eigenvalue 3, off the most", 2.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "limits", "words"),
    [
        (["--step", "7"], {}, "no step 7 of split test; recorded are [0, 2] of ['test']"),
        (["--split", "train"], {}, "no step 2 of split train"),
        ([], {"LARGEST": 42}, "at most 42: select some by hessian.param_filter"),
        ([], {"free_memory": lambda: 50_000}, "takes 59.2 kB of memory, and 50.0 kB are free"),
        (["problem.activation=mixed"], {}, "must have the dtype of the parameters or the batch"),
    ],
    ids=["step", "split", "size", "memory", "dtype"],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    small, skerch, monkeypatch, arguments, limits, words
):
    for name, value in limits.items():
        monkeypatch.setattr(exhaustive, name, value)
    status, _, err = skerch("exhaustive", small, *arguments)
    assert status in (1, 2)
    assert words in " ".join(err.split())
    assert not small.with_name("runs").exists()


def test_free_memory_is_some_of_that_of_the_machine():
    assert 2**20 < exhaustive.free_memory() < 2**50
