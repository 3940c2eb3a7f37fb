"""A run measures one Hessian, the right one, by one strategy; or it says why not."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from skerch.curvature import operator, supervised_loss
from skerch.jobs import problems
from skerch.jobs.config import ConfigError, load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.problems import Problem
from skerch.jobs.run_dir import RunDir
from skerch.jobs.stages.inputs import Inputs, in_mode
from skerch.jobs.stages.operator import curvature_operator

CROSS_ENTROPY = supervised_loss(nn.functional.cross_entropy)


def test_a_loss_edited_between_a_kill_and_the_resume_is_refused(
    reference, tmp_path, monkeypatch, capsys
):
    shutil.copytree(reference.run_dir, tmp_path / "run")
    config = load(tmp_path / "run")
    directory = RunDir(config.run_dir).step("seigh", 60, "test")
    for path in (directory.overlap, directory.eigh, directory.merged):
        path.unlink()
    blocks = sorted(directory.measurements(2).glob("blocks/*"))
    blocks[-1].unlink()
    before = [block.read_bytes() for block in blocks[:-1]]

    original = problems.load_problem
    for name, change in {
        "threefold": lambda loss: 3 * loss,
        "smoothed": lambda loss: loss + 0.001 * loss**2,
    }.items():

        def edited(*arguments, change=change):
            problem = original(*arguments)
            return replace(problem, loss_fn=lambda m, b: change(problem.loss_fn(m, b)))

        monkeypatch.setattr(problems, "load_problem", edited)
        failures = complete(config)
        (words,) = (words for words in failures.values() if "another loss" in words)
        assert "loss was 0." in words, name
        assert "The problem's code has changed since; take the old code back, or delete " in words
        assert [block.read_bytes() for block in blocks[:-1]] == before
        assert not directory.merged.exists()
    monkeypatch.undo()
    assert not complete(config)


def test_all_hessians_of_a_run_are_of_one_loss(small, monkeypatch):
    config = small("hessian.splits=[test]")
    assert not complete(config)
    run = RunDir(config.run_dir)
    shutil.rmtree(run.step("seigh", 60, "test").path)
    original = problems.load_problem

    def edited(*arguments):
        problem = original(*arguments)
        return replace(problem, loss_fn=lambda m, b: problem.loss_fn(m, b) + sum_of_squares(m))

    def sum_of_squares(model):
        return 0.001 * sum(p.square().sum() for p in model.parameters())

    monkeypatch.setattr(problems, "load_problem", edited)
    words = complete(config)["seigh.step-000060-test.layout-1"]
    assert f"{run.step('seigh', 20, 'test').measurements(1)} was laid out for another loss" in words
    assert f"or delete {run.method('seigh')} to measure all anew" in words
    shutil.rmtree(run.method("seigh"))
    assert not complete(config)


def test_the_strategy_is_timed_once_a_run(small, monkeypatch):
    timed = []
    fastest = operator.fastest
    monkeypatch.setattr(operator, "fastest", lambda *a: timed.append(1) or fastest(*a))
    config = small("hessian.strategy=auto", "hessian.splits=[train,test]")
    assert not complete(config)
    assert len(timed) == 1
    run = RunDir(config.run_dir)
    kinds = set()
    for step in (20, 60):
        for split in ("train", "test"):
            array = run.step("seigh", step, split)
            text = (array.measurements(1) / "manifest.json").read_text()
            kinds.add(tuple(line for line in text.splitlines() if "strategy" in line))
    assert len(kinds) == 1


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("turn", torch.tensor(1j))

    def forward(self, x):
        turned = (self.norm(self.a(x)) * self.turn).imag
        return self.b(self.drop(torch.tanh(turned)))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batch_norm_takes_running_statistics_or_those_of_the_data(small, mode):
    torch.manual_seed(0)
    config = small("hessian.dtype=float64", f"hessian.mode={mode}")
    model, batch = Normalised(), (torch.randn(20, 4), torch.arange(20) % 3)
    problem = Problem(Normalised, lambda split: None, CROSS_ENTROPY)
    op = curvature_operator(config, Inputs(problem, in_mode(model, config.hessian), batch))
    H = op @ torch.eye(op.shape[0]).double()

    def loss(vector):
        parts = vector.split([p.numel() for p in op.params.values()])
        w = [v.view(p.shape) for v, p in zip(parts, op.params.values(), strict=True)]
        z = batch[0].double() @ w[0].T + w[1]
        mean, var = (z.mean(0), z.var(0, correction=0)) if mode == "train" else (0.0, 1.0)
        z = (z - mean) / (torch.as_tensor(var) + 1e-5) ** 0.5 * w[2] + w[3]
        return nn.functional.cross_entropy(torch.tanh(z) @ w[4].T + w[5], batch[1])

    torch.testing.assert_close(H, torch.autograd.functional.hessian(loss, op.vector()))
    assert not model.norm.running_mean.any()  # not touched


def test_a_mode_that_cannot_be_meant_is_refused(small):
    with pytest.raises(ConfigError, match=r"takes statistics of all the data.*set it to null"):
        small("hessian.mode=train", "hessian.batch_size=50")
    with pytest.raises(ConfigError, match=r"for batch norm, and this network has none"):
        in_mode(nn.Linear(2, 2), small("hessian.mode=train").hessian)
