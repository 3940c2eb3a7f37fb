"""What `plan` foretells of disk and time: against a problem of known cost and against real runs."""

from __future__ import annotations

import math
import os

import pytest

from skerch.jobs import commands, pipeline
from skerch.jobs.commands.seigh import calibrate, plan
from skerch.jobs.commands.seigh.calibrate import Pace, measure_pace
from skerch.jobs.commands.seigh.disk import hessian_disk, training_disk
from skerch.jobs.config import load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.pipeline import task_log
from skerch.jobs.run_dir import RunDir
from skerch.jobs.stages import merge

SECONDS = 0.4  # that each block of SLOW takes
SLOW = f"""
import time
import torch
from torch.utils.data import TensorDataset
from skerch.jobs.problems import Problem


def loss(model, batch):
    if torch.is_grad_enabled():  # for both batches of a block, not where only the loss is wanted
        time.sleep({SECONDS / 2})
    return (model(batch[0]) - batch[1]).square().mean()


def make():
    data = TensorDataset(torch.arange(40.0).view(8, 5) / 40, torch.zeros(8, 4))
    return Problem(lambda: torch.nn.Linear(5, 4), lambda split: data, loss)
"""
# 8 + 4 columns and then 8, in blocks of 4: five blocks
EXPERIMENT = """
problem: {factory: "sleeping:make"}
training: {max_steps: 0, record_steps: [0], batch_size: 8}
hessian: {splits: [test], datapoints: 8, batch_size: 4, subset: first, strategy: loop}
sketch: {outer: 8, inner: 16, rounds: 2, probes: 4, block_size: 4}
launcher: {threads: 1, blocks_per_task: 1}
"""


def sizes(paths):
    return sum(path.stat().st_size for path in paths)


def cells(out):
    """The cells of a table's rows by name."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    return {row[0]: row[1:] for row in rows if row}


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """An experiment whose measuring takes five times `SECONDS`, and little more."""
    (tmp_path / "sleeping.py").write_text(SLOW)
    (tmp_path / "slow.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands.calibrate, "REPETITIONS", 3)
    return load("slow.yaml")


def test_the_forecast_is_what_sleeping_blocks_take_and_what_a_run_takes(slow):
    """Five blocks, a task each; where tasks share a process, the first use is paid once."""
    pace = measure_pace(slow)
    blocks = 20 * pace.matvec
    assert not RunDir(slow.run_dir).path.exists()
    assert 5 * SECONDS <= blocks < 1.3 * 5 * SECONDS
    assert not complete(slow)
    records = task_log.records(RunDir(slow.run_dir)).items()
    took = sum(record["seconds"] for task, record in records if ".measure-" in task)
    # what sleeps takes its time; a start beside another test may take twice as long
    assert 0.8 * blocks < took < 1.2 * blocks + 2 * 5 * pace.start


@pytest.mark.parametrize("patience", [SECONDS / 2, 0.0])
def test_one_block_is_timed_where_it_or_what_comes_before_takes_long(slow, monkeypatch, patience):
    monkeypatch.setattr(commands.calibrate, "PATIENCE", patience)
    times = []
    monkeypatch.setattr(calibrate.Measurer, "measure", lambda *_: times.append(SECONDS) or {})
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: sum(times))
    monkeypatch.setattr(calibrate.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(calibrate, "_least", lambda work: SECONDS)
    assert measure_pace(slow).matvec == pytest.approx(SECONDS / 4)
    assert len(times) == 1


def test_a_run_that_is_there_gives_parameters_strategy_and_threads(reference, skerch):
    def files():
        return {p: p.stat().st_mtime_ns for p in RunDir(reference.run_dir).path.rglob("*")}

    before = files()
    run = RunDir(reference.run_dir).config
    status, out, _ = skerch("plan", run, "--calibrate", "launcher.threads=null")
    assert status == 0
    assert "cpu, threads 1, strategy batched" in " ".join(out.split())
    assert files() == before


def test_times_are_those_of_the_plans_tasks(tmp_path, monkeypatch, skerch):
    """100 + 30 and 100 columns in blocks of 64, a task each: 3 tasks, then 2, six Hessians."""
    monkeypatch.chdir(tmp_path)
    pace = Pace(1.0, 10.0, "cpu", 4, "loop", math.inf, 0.0)
    monkeypatch.setattr(plan, "measure_pace", lambda _: pace)
    options = ("sketch.rounds=2", "launcher.blocks_per_task=1", "resources.measure.throttle=2")
    _, out, _ = skerch("plan", "digits", "--calibrate", *options)
    rows = cells(out)
    assert rows["time: a matvec"] == ["1 s", ""]
    assert rows["time: a measurement task"] == ["1.23 min", ""]  # 10 + 64 s
    assert rows["time: measuring, one worker"] == ["4.67 min", "28 min"]  # 230 + 5 · 10 s
    assert rows["time: all, one worker"] == ["4.67 min", "28 min"]  # where the rest takes no time
    assert rows["time: all, throttle 2"] == ["3.7 min", "3.7 min"]  # three times a task
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_cannot_be_measured_is_one_sentence(slow, tmp_path, skerch):
    (tmp_path / "dozing.py").write_text(SLOW.replace("time.sleep", "time.doze"))
    status, _, err = skerch("plan", "slow.yaml", "--calibrate", "problem.factory=dozing:make")
    assert status == 2
    assert "A block cannot be measured: AttributeError" in err
    assert "dozing.py:10" in err


def test_what_stays_is_what_a_run_has_on_disk(reference):
    run, hessians = RunDir(reference.run_dir), len(reference.training.record_steps)
    found = [p for p in run.method("seigh").rglob("*") if p.is_file()]
    found += [run.parameters, *run.figures.glob("seigh-*")]
    said = hessians * hessian_disk(reference, 1930).stays + training_disk(reference, 1930)
    assert sizes(found) == pytest.approx(said, rel=0.05)


@pytest.mark.parametrize(
    "overrides",
    [
        ["sketch.recovery=oversampled", "sketch.rounds=1", "hessian.dtype=float64"],
        ["sketch.rounds=3", "sketch.block_size=7"],
    ],
)
def test_the_most_is_on_disk_as_the_merged_file_is_verified(small, monkeypatch, overrides):
    config = small("training.record_steps=[60]", "keep_blocks=false", *overrides)
    directory, seen = RunDir(config.run_dir).step("seigh", 60, "test"), []

    def look(path):
        seen.append((sizes(directory.path.rglob("round-*/**/*.h5")), sizes([path])))

    monkeypatch.setattr(merge, "verify", look)
    assert not complete(config)
    said = hessian_disk(config, 1930)
    assert seen[0] == (pytest.approx(said.blocks, rel=0.03), pytest.approx(said.merged, rel=0.03))
    assert said.peak == said.blocks + said.merged
    left = sizes([directory.merged, directory.eigh])
    assert left + said.analysis == pytest.approx(said.stays, rel=0.03)


def test_hessians_side_by_side_are_all_at_their_worst_at_once():
    config = load("digits", ["keep_blocks=false"])
    each = hessian_disk(config, 1930)
    for key, others in (("cluster=null", each.stays), ("cluster=gpu", each.peak)):
        stays, most = plan.run_disk(load("digits", ["keep_blocks=false", key]), 1930)
        assert most - stays == each.peak - each.stays + 5 * (others - each.stays)


def test_a_run_that_is_there_counts_what_is_done(reference, skerch):
    _, out, _ = skerch("plan", RunDir(reference.run_dir).config)
    assert cells(out)["tasks, already done"] == ["", str(len(pipeline.tasks(reference)))]


def test_memory_that_cannot_suffice_is_warned_of(tmp_path, monkeypatch, skerch):
    monkeypatch.chdir(tmp_path)
    _, out, _ = skerch("plan", "digits", "resources.merge.memory=100M", "resources.train.memory=9T")
    (warning,) = [line for line in out.splitlines() if line.startswith("warning")]
    assert "resources.merge.memory is 100M, which is too little" in warning


def test_blocks_that_this_machine_cannot_hold_are_warned_of(tmp_path, monkeypatch, skerch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda name: 2**11)  # 4 MiB
    monkeypatch.setattr("skerch.jobs.commands.seigh.plan.python_memory", lambda: 0)
    for size, warned in ((64, True), (1, False)):
        blocks = f"sketch.block_size={size}"
        _, out, _ = skerch("plan", "mnist_mini", "sketch.rounds=2", blocks)
        assert ("give it a smaller sketch.block_size" in out) == warned


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2.5e-7, "0.25 µs"), (0.0123, "12.3 ms"), (59.0, "59 s"), (5400, "1.5 h"), (4e6, "1,111 h")],
)
def test_durations_have_three_digits(seconds, words):
    assert plan.duration(seconds) == words
