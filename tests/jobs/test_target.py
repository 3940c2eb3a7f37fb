"""Rounds that end once a target is reached: the same bytes whoever measures, whatever is lost."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from skerch.jobs import pipeline
from skerch.jobs.config import ConfigError, load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.run_dir import RunDir, rounds_file
from skerch.jobs.run_dir.binding import bind
from skerch.jobs.stages import judge, program

FEW = ["training.record_steps=[60]", "sketch.rounds=30", "sketch.inner=120"]
REACHED = [*FEW, "sketch.target={residual: 1.05}"]


@pytest.fixture(scope="module")
def whole(small_overrides, tmp_path_factory):
    """A run whose rounds, all in one task, end before the last one."""
    few = [f"run_dir={tmp_path_factory.mktemp('run')}", *small_overrides, *REACHED]
    config = load("digits", [*few, "launcher.blocks_per_task=8"])
    assert not complete(config)
    return config


def step(config):
    return RunDir(config.run_dir).step("seigh", 60, "test")


def record(config):
    return json.loads(step(config).rounds.read_text())


def measured(config):
    return sorted(int(path.name[6:]) for path in step(config).rounds.parent.glob("round-*"))


def stages(config):
    return [task.stage for task in pipeline.missing(pipeline.tasks(config))]


def test_rounds_end_with_the_one_that_reached_the_target(whole):
    *before, last = record(whole)["judged"]
    assert last["reached"]
    assert last["residual"] <= 1.05
    assert not any(judged["reached"] for judged in before)
    assert measured(whole) == list(range(1, last["round"] + 1))
    assert last["matvecs"] == 4 * last["round"] < 120
    assert not stages(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_of_their_own_leave_the_bytes_of_one(whole, small, results_of, workers):
    config = small(*REACHED, f"launcher.workers={workers}")
    assert stages(config).count("range_finder") == 29
    assert not complete(config)
    assert results_of(config.run_dir) == results_of(whole.run_dir)
    assert step(config).rounds.read_bytes() == step(whole).rounds.read_bytes()
    assert measured(config) == measured(whole)
    assert not stages(config)


@pytest.mark.parametrize("blocks_per_task", [2, 8])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_where_the_target_is_recorded_changes_nothing(
    whole, small, results_of, monkeypatch, when, blocks_per_task
):
    def killed(*arguments):
        if when == "after":
            add(*arguments)
        raise KeyboardInterrupt

    add, config = rounds_file.add, small(*REACHED, f"launcher.blocks_per_task={blocks_per_task}")
    monkeypatch.setattr(judge.rounds_file, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        complete(config)
    monkeypatch.undo()
    monkeypatch.chdir(Path(config.run_dir).parents[1])
    assert not complete(config)
    assert results_of(config.run_dir) == results_of(whole.run_dir)
    assert step(config).rounds.read_bytes() == step(whole).rounds.read_bytes()


@pytest.mark.parametrize("blocks_per_task", [2, 8])
def test_what_is_lost_is_made_again(whole, small, results_of, blocks_per_task):
    config = small(*REACHED, f"launcher.blocks_per_task={blocks_per_task}")
    assert not complete(config)
    directory, last = step(config), record(config)["judged"][-1]["round"]
    for lost in (
        directory.rounds,
        directory.range(last),
        directory.measurements(3) / "blocks" / "block-000000.h5",
        directory.merged,
        directory.eigh,
    ):
        lost.unlink()
    assert not complete(config)
    assert results_of(config.run_dir) == results_of(whole.run_dir)
    assert not stages(config)


def test_blocks_may_go_once_they_are_merged(whole, small):
    config = small(*REACHED, "keep_blocks=false")
    assert not complete(config)
    assert not stages(small(*REACHED, "keep_blocks=false"))
    assert not complete(config)
    assert step(config).eigh.read_bytes() == step(whole).eigh.read_bytes()


def test_a_damaged_record_is_named_and_the_rounds_are_judged_again(whole, small, skerch):
    config = small(*REACHED)
    assert not complete(config)
    path, text = step(config).rounds, step(config).rounds.read_text()
    path.write_text(text.replace("true", "false"))
    status, words, _ = skerch("status", config.run_dir, "--verify")
    assert status != 0
    assert f"{path} is damaged" in words.replace("\n", "")
    assert not complete(config)
    assert record(config)["judged"] == json.loads(text)["judged"][-1:]  # those before are over


def test_a_target_that_is_not_reached_is_said_and_a_larger_inner_goes_on(small, skerch):
    few = ["training.record_steps=[60]", "sketch.target={pairs: 1e-3}", "sketch.rounds=auto"]
    config = small(*few, "sketch.inner=60")
    assert not complete(config)
    assert [judged["reached"] for judged in record(config)["judged"]] == [False, False, False]
    _, words, _ = skerch("results", config.run_dir)
    assert "target   step 60 test: not reached within inner=60: raise sketch.inner (" in words
    before = {path: path.read_bytes() for path in Path(config.run_dir).rglob("block-*.h5")}
    larger = small(*few, "sketch.inner=200")
    assert not complete(larger)
    assert before == {path: path.read_bytes() for path in before}
    last = record(larger)["judged"][-1]
    assert last["reached"]
    _, words, _ = skerch("results", config.run_dir)
    assert f"target   step 60 test: reached with {last['matvecs']} of 200 matvecs (" in words
    _, text, _ = skerch("results", config.run_dir, "--csv")
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["matvecs"], row["target_reached"]) == (str(last["matvecs"]), "True")


def test_a_sharper_target_goes_on_from_the_rounds_that_are_there(whole, small, results_of):
    config = small(*REACHED)
    assert not complete(config)
    first = measured(config)
    sharper = small(*FEW, "sketch.target={pairs: 3e-3}")
    assert {"range_finder", "layout", "measure", "merge"} < set(stages(sharper))
    assert not complete(sharper)
    assert measured(sharper)[: len(first)] == first
    assert len(measured(sharper)) > len(first)
    assert record(sharper)["asked"]["target"] == {"pairs": 3e-3}
    assert not stages(sharper)


def test_plan_and_status_tell_of_rounds_that_are_not_needed(whole, small, skerch):
    _, words, _ = skerch("plan", whole.run_dir)
    assert "Hessian matvecs, at most" in words
    assert "target   rounds end once it is reached" in words
    _, words, _ = skerch("status", whole.run_dir)
    assert "All 5 tasks are done" in words
    rounds = len(measured(whole))
    apart = small(*REACHED, f"run_dir={whole.run_dir}")  # in tasks of their own: 6 in round 1
    assert "not needed" in skerch("plan", whole.run_dir, "launcher.blocks_per_task=2")[1]
    bind(RunDir(apart.run_dir), apart)
    _, words, _ = skerch("status", whole.run_dir)
    assert f"All {3 * rounds + 5} tasks are done" in words


def test_a_job_or_a_stage_of_a_round_that_is_not_needed_ends_at_once(small, monkeypatch):
    config = small(*REACHED)
    assert not complete(config)
    there = measured(config)
    task = f"seigh.step-000060-test.layout-{len(there) + 2}"
    run = [sys.executable, "-m", "skerch.jobs.launchers.slurm.task", config.run_dir, task]
    done = subprocess.run(run, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (
        0,
        f"{task} is not needed: the target is reached.\n",
    )
    for stage in ("range_finder", "layout", "measure"):
        arguments = [stage, config.run_dir, "--round", str(len(there) + 1)]
        monkeypatch.setattr(sys, "argv", arguments)
        program.main(stage)
    assert measured(config) == there


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sketch.target={residual: 0.9}"], r"target\.residual is 0\.9; .* above 1"),
        (["sketch.target={pairs: 2}"], r"target\.pairs is 2; .* between 0 and 1"),
        (["sketch.target={}"], "one key"),
        (["sketch.target={residual: 1.1, pairs: 0.1}"], "one key"),
        (["sketch.target=1.05"], r"sketch\.target expects a mapping with text keys or null"),
        (["sketch.target={residual: small}"], r"target\.residual is 'small'; .* above 1"),
        (["sketch.target.residual=1.05", "sketch.rounds=2"], "cannot be judged before the last"),
        (
            ["sketch.target.residual=1.05", "sketch.recovery=oversampled", "sketch.rounds=1"],
            "for recovery nystrom, not",
        ),
    ],
)
def test_targets_that_cannot_be_are_refused(small, overrides, words):
    with pytest.raises(ConfigError, match=words):
        small(*overrides)


def test_inner_is_the_bound_of_a_target_and_rounds_are_small_unless_each_waits(tmp_path):
    asked = [f"run_dir={tmp_path}", "sketch.outer=100", "sketch.target.residual=1.05"]
    config = load("digits", asked)
    assert config.sketch.inner == 440
    assert max(each.columns for each in config.sketch.each_round()) == 8
    queued = load("digits", asked, queued=True)
    assert max(each.columns for each in queued.sketch.each_round()) == 49
    assert load("digits", [*asked, "sketch.inner=200"]).sketch.inner == 200
