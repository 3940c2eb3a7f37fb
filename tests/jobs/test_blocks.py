"""How many blocks a task measures where that is left to skerch."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from skerch.jobs import pipeline
from skerch.jobs.config import ConfigError
from skerch.jobs.launchers.complete import complete
from skerch.jobs.pipeline import blocks, task_log
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import bind

AUTO = ["launcher.blocks_per_task=auto", "sketch.rounds=1", "training.record_steps=[60]"]


@pytest.fixture
def numbered(small):
    """A function: the blocks of a task, and why, where one took so many seconds."""

    def ask(seconds=None, *overrides, made=2, stage="measure", **how):
        config = small(*AUTO, *overrides)
        run = RunDir(config.run_dir)
        if seconds is not None:
            run.logs.mkdir(parents=True, exist_ok=True)
            record = {"id": f"seigh.step.{stage}-1.0", "stage": stage, "error": None}
            record |= {"started": 0.0, "seconds": made * seconds, "made": made}
            run.task_records.write_text(json.dumps(record))
        found, why = blocks.numbered(config, **{"queued": True} | how)
        return found.launcher.blocks_per_task, why

    return ask


@pytest.mark.parametrize(
    ("seconds", "overrides", "expected"),
    [
        (0.1, [], 9),  # all nine in less than ten minutes
        (100.0, [], 3),  # fifteen minutes: four tasks at least, of which the last is short
        (100.0, ["resources.measure.throttle=2"], 5),
        (100.0, ["sketch.block_size=1"], 6),  # 70 of them: ten minutes
        (1000.0, [], 1),
    ],
)
def test_a_task_takes_ten_minutes_and_a_longer_round_is_cut(numbered, seconds, overrides, expected):
    assert numbered(seconds, *overrides) == (
        expected,
        f"a block takes {seconds:.3g} s, as this run's tasks took",
    )


def test_where_no_task_waits_in_a_queue_there_are_four(numbered):
    assert numbered(100.0, queued=False) == (4, "as none waits in a queue")


def test_what_a_run_has_stays_while_it_lives_and_until_a_block_is_timed(numbered, small):
    assert numbered() == (4, "until a block is timed, as by plan --calibrate")
    config = small(*AUTO)
    bind(
        RunDir(config.run_dir),
        replace(config, launcher=replace(config.launcher, blocks_per_task=2)),
    )
    assert numbered() == (2, "as the run has it")
    assert numbered(100.0, live=True) == (2, "as live jobs have it")
    assert numbered(100.0)[0] == 3
    assert numbered(100.0, "launcher.blocks_per_task=7") == (7, "as it is asked for")


def test_other_records_are_no_measure(numbered):
    assert numbered(100.0, stage="merge")[0] == 4
    assert numbered(100.0, made=0)[0] == 4


def test_a_calibration_counts_until_the_run_has_times_and_for_the_same_alone(numbered, small):
    blocks.keep_calibrated(small(*AUTO), 200.0)
    assert numbered() == (3, "a block takes 200 s, as plan --calibrate found here")
    assert numbered(None, "hessian.datapoints=200")[0] == 4
    assert numbered(1000.0)[0] == 1


def test_a_plan_with_times_leaves_them_and_says_the_number(small, skerch, tmp_path):
    options = [f"run_dir={tmp_path}/run", "sketch.rounds=2", "cluster=devcluster"]
    _, out, _ = skerch("plan", "digits", *options)
    assert "blocks   4 a task: until a block is timed, as by plan --calibrate." in out
    assert not (tmp_path / "run").exists()
    _, out, _ = skerch("plan", "digits", *options, "--calibrate")
    assert "a task: a block takes " in out
    assert "blocks   3 a task" in out  # all of the first round
    path = RunDir(tmp_path / "run").calibration("seigh")
    assert 0 < json.loads(path.read_text())["seconds"] < 60


def test_a_run_records_what_its_tasks_made_and_is_bound_to_a_number(small, results_of, reference):
    config = small("launcher.blocks_per_task=auto")
    assert not complete(config)
    run = RunDir(config.run_dir)
    made = {record["id"]: record["made"] for record in task_log.attempts(run)}
    assert sum(number for task, number in made.items() if "60-test.measure-1" in task) == 7
    assert run.load("seigh").launcher.blocks_per_task == 4
    assert results_of(config.run_dir) == results_of(reference.run_dir)
    found, _ = blocks.numbered(config, queued=True)
    assert found.launcher.blocks_per_task == 7
    assert not pipeline.missing(pipeline.tasks(found))


@pytest.mark.parametrize("value", ["0", "some", "1.5", "true", "null"])
def test_what_is_no_number_is_refused(small, value):
    with pytest.raises(ConfigError, match=r"launcher\.blocks_per_task is .*; it is auto, or a"):
        small(f"launcher.blocks_per_task={value}")
