"""A problem that sets torch's default device or dtype changes none of the program's own tensors."""

from __future__ import annotations

import sys

import torch

from skerch.jobs.config import load
from skerch.jobs.launchers.complete import complete

PROBLEM = """
import torch
from torch import nn
from skerch.jobs.problems import Problem

class Data(torch.utils.data.Dataset):
    targets = [i % 3 for i in range(60)]

    def __len__(self):
        return 60

    def __getitem__(self, i):
        x = torch.sin(torch.arange(i, i + 4, device="cpu", dtype=torch.float32))
        return x, torch.tensor(i % 3, device="cpu")

def make():
    kind = {"device": "cpu", "dtype": torch.float32}
    model = lambda: nn.Sequential(nn.Linear(4, 5, **kind), nn.BatchNorm1d(5, **kind),
                                  nn.Linear(5, 3, **kind))
    return Problem(model, lambda split: Data(),
                   lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]))
"""
EXPERIMENT = """
problem: {factory: "mine:make"}
training: {max_steps: 2, batch_size: 20, record_steps: [2]}
hessian: {datapoints: 30, splits: [test], strategy: loop}
sketch: {outer: 3, inner: 9}
launcher: {device: cpu, threads: 1}
"""


def test_runs_give_the_same_bits(tmp_path, monkeypatch, results_of):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(PROBLEM)
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)
    changes = {
        "usual": lambda: None,
        "device": lambda: torch.set_default_device("meta"),
        "dtype": lambda: torch.set_default_dtype(torch.float64),
    }
    found = []
    for name, change in changes.items():
        try:
            change()
            assert not complete(load("mine.yaml", [f"run_dir={name}"]))
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)
        found.append(results_of(tmp_path / name))
    assert found[0]
    assert found == [found[0]] * 3
