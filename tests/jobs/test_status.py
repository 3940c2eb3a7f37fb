"""What `status` says of runs here: what ended a task, where, and what to type next."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from skerch.jobs.config import load
from skerch.jobs.launchers.slurm.scheduler import Element
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import bind

PROBLEM = """
import os
import torch
from torch.utils.data import TensorDataset
from skerch.jobs.problems import Problem

def make(loss):
    data = TensorDataset(torch.ones(20, 3), torch.arange(20.0)[:, None])
    return Problem(lambda: torch.nn.Linear(3, 1), lambda split: data, globals()[loss])

def short(model, batch):
    return batch[2].mean()

def deadly(model, batch):
    os.kill(os.getpid(), 11)
"""
EXPERIMENT = """
problem: {factory: "linear:make", loss: short}
training: {max_steps: 1, batch_size: 10}
hessian: {datapoints: 10, subset: first, splits: [test]}
sketch: {outer: 1, inner: 4, rounds: 2}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with an experiment whose loss fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "linear", raising=False)  # another test's
    (tmp_path / "linear.py").write_text(PROBLEM)
    (tmp_path / "small.yaml").write_text(EXPERIMENT)
    yield tmp_path
    sys.modules.pop("linear", None)


@pytest.fixture
def run(reference, tmp_path, monkeypatch):
    """A finished run in the current folder."""
    monkeypatch.chdir(tmp_path)
    return RunDir(shutil.copytree(reference.run_dir, tmp_path / "runs" / "digits"))


def test_an_error_is_said_with_its_line_and_what_to_type(folder, skerch, monkeypatch):
    assert skerch("run", "small.yaml")[0] == 1
    said = skerch("status", "runs/small")[1]
    reason = f"IndexError: tuple index out of range ({folder}/linear.py:12)"
    assert f"\ntrain failed: {reason}\n" in said
    assert "train.log, or python -m skerch logs runs/small train\n" in said
    assert "  next: python -m skerch run runs/small\n" in said
    assert "16 more tasks need train, which failed\n" in said
    assert skerch("status", "small.yaml")[1] == said
    records = RunDir(folder / "runs" / "small").task_records.read_text()
    assert json.loads(records)["error"] == reason
    monkeypatch.chdir("runs/small")
    assert f"  next: python -m skerch run {folder}/runs/small\n" in skerch("status")[1]
    assert "IndexError" in skerch("logs", ".", "-f")[1]  # and ends


def test_a_worker_that_dies_is_named_with_its_signal(folder, skerch):
    _, _, words = skerch("run", "small.yaml", "problem.loss=deadly", "launcher.workers=2")
    assert "A worker process has died, at train: killed by SIGSEGV (signal 11). What is" in words
    assert "train failed: killed by SIGSEGV (signal 11)\n" in skerch("status", "small.yaml")[1]


def test_a_process_that_ended_without_a_word_has_failed_and_a_live_one_runs(run, skerch):
    directory = run.step("seigh", 60, "test")
    directory.overlap.unlink()
    log = run.task_log("seigh.step-000060-test.analyze")
    start = "2100-01-01T00:00:00+00:00 analyze starts on"
    gone = subprocess.Popen("true")
    gone.wait()
    for host, pid, said in (
        (socket.gethostname(), gone.pid, f"failed: its process {gone.pid} was killed or stopped"),
        (socket.gethostname(), os.getpid(), f"running: process {os.getpid()} of this machine"),
        ("elsewhere", gone.pid, "To go on: python -m skerch run runs/digits\n"),
    ):
        log.write_text(f"{start} {host}, pid {pid}\n")
        assert said in skerch("status", run.path)[1]
    assert f"  last line: {start}" not in skerch("status", run.path)[1]


def test_an_interrupted_task_says_so(run, skerch):
    run.step("seigh", 20, "test").overlap.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "skerch.jobs.stages.analyze.run", lambda context: os.kill(os.getpid(), signal.SIGINT)
        )
        assert skerch("run", run.path)[0] == 130
    assert "analyze failed: interrupted\n" in skerch("status", run.path)[1]


def test_a_finished_run_says_where_its_results_are(run, skerch):
    assert skerch("status", "digits")[1].endswith(
        "All 25 tasks are done; see: python -m skerch results runs/digits\n"
    )


def test_each_method_goes_on_by_its_own_config(run, skerch):
    bind(run, load(run.path, ["name=wide"]))
    run.step("seigh", 60, "test").overlap.unlink()
    said = skerch("status", run.path)[1]
    assert "To go on: python -m skerch run runs/digits\n" in said
    assert "To go on: python -m skerch run runs/digits/seigh/hessian_config.yaml\n" in said
    assert skerch("run", "runs/digits/seigh/hessian_config.yaml")[0] == 0
    assert run.step("seigh", 60, "test").overlap.exists()


def test_what_is_no_run_is_said_with_those_that_are_near(run, skerch):
    for command, name in (("status", "digts"), ("logs", "."), ("cancel", "mnist_mini.yaml")):
        status, _, words = skerch(command, name)
        assert status == 2
        assert "is no run directory: it has no config.yaml. There are runs/digits." in words
        assert "python -m skerch run" in words


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ("FAILED", "0:9", "killed by SIGKILL (signal 9)"),
        ("FAILED", "139:0", "killed by SIGSEGV (signal 11)"),
        ("FAILED", "7:0", "killed by SIGBUS (signal 7)"),
        ("FAILED", "127:0", "ended with exit status 127"),
        ("FAILED", "1:0", "ended with exit status 1"),
        ("TIMEOUT", "0:15", "TIMEOUT"),
    ],
)
def test_an_exit_code_is_said_in_words(state, code, words):
    assert Element("7", state, exit_code=code).outcome == words


def test_reasons_that_differ_in_figures_alone_are_told_once(folder, skerch):
    problem = PROBLEM + "def total(model, batch):\n    return short(model, batch)\n"
    problem = problem.replace("batch[2].mean()", "(model(batch[0]) - batch[1]).square().sum()")
    (folder / "linear.py").write_text(problem)
    both = "hessian.splits=[train,test]"
    assert skerch("run", "small.yaml", "hessian.batch_size=4", "training.lr=0.001", both)[0] == 1
    table = skerch("status", "small.yaml")[1]
    assert table.count("Batches do not combine") == 1
    assert "layout tasks failed likewise" in table


def test_several_runs_are_a_table_with_a_line_each(folder, run, skerch):
    run.step("seigh", 60, "test").overlap.unlink()
    assert skerch("run", "small.yaml")[0] == 1
    status, said, _ = skerch("status", "runs/digits", "small.yaml")
    assert status == 0
    rows = [[cell.strip() for cell in re.split("[┃│]", line)][1:-1] for line in said.splitlines()]
    reason = f"train failed: IndexError: tuple index out of range ({folder}/linear.py:12)"
    head, finished, failed = filter(None, rows)
    assert head == ["run", "method", "done", "failed", "missing", "of", "note"]
    assert finished == ["runs/digits", "seigh", "24", "", "1", "25", "to go on: run"]
    assert failed[:-1] == ["runs/small", "seigh", "", "1", "16", "17"]
    assert reason.startswith(failed[-1].removesuffix(" …"))
    each = [json.loads(skerch("status", name, "--json")[1]) for name in ("digits", "small.yaml")]
    assert json.loads(skerch("status", "digits", "small.yaml", "--json")[1]) == each


def test_the_exit_code_tells_what_is_to_be_done(folder, run, skerch):
    assert skerch("status", "digits", "--exit-code")[0] == 0
    overlap = run.step("seigh", 60, "test").overlap
    overlap.rename(folder / "overlap.json")
    log = run.task_log("seigh.step-000060-test.analyze")
    start = f"2100-01-01T00:00:00+00:00 analyze starts on {socket.gethostname()}, pid"
    log.write_text(f"{start} {os.getpid()}\n")
    assert skerch("status", "digits", "--exit-code")[0] == 3
    assert skerch("status", "digits")[0] == 0
    gone = subprocess.Popen("true")
    gone.wait()
    log.write_text(f"{start} {gone.pid}\n")
    assert skerch("status", "digits", "--exit-code")[0] == 4
    log.unlink()
    assert skerch("status", "digits", "--exit-code")[0] == 4  # nobody is at it
    (folder / "overlap.json").rename(overlap)
    assert skerch("run", "small.yaml")[0] == 1
    assert skerch("status", "digits", "small.yaml", "--exit-code")[0] == 4
    overlap.write_text("{")
    assert skerch("status", "digits", "--exit-code", "--verify")[0] == 1
