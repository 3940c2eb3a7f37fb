"""Faults after which nobody types anything: the run ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
HEALS = "launcher.heals=3"
MEASURE = "seigh.step-000020-test.measure-1"
STAGES = ("train", "layout", "measure", "merge", "decompose", "analyze")


@pytest.fixture
def ends_well(local, results_of):
    """A function that waits for a run's end and compares its results with the local run's."""

    def check(run, seconds=180):
        run.wait_for_end(seconds)
        assert not [task for task in run.status().values() if task["state"] != "done"]
        assert results_of(run.path) == results_of(local)

    return check


def jobs(run):
    """What was submitted."""
    return (run.path / "slurm" / "jobs.jsonl").read_text()


def words(run):
    """What the job at the end of the chain said."""
    return (run.path / "logs" / "seigh.report.log").read_text()


def test_killed_workers_are_submitted_again_elsewhere(trained, ends_well):
    """Two die on one node, and the task that comes after them is kept from it."""
    trained.halt(3)
    trained.submit(HEALS)
    pids, status = trained.halted(), trained.status()
    nodes = [status[f"measure-1.{index}"]["node"] for index in range(3)]
    assert nodes[0] == nodes[1], "the devcluster fills a node first"
    for pid in pids[:2]:
        os.kill(pid, signal.SIGKILL)
    trained.go_on()
    ends_well(trained)
    again = f"{MEASURE}.0 failed (killed), and 1 more task likewise: submitted again.\n"
    assert again in words(trained)
    (trained.path / "seigh" / "step-000020-test" / "overlap.json").unlink()
    said = trained.submit(HEALS).stdout
    reason = f"{MEASURE}.0 and 1 more task died there and lived elsewhere"
    assert f"Node {nodes[0]} is left out: {reason}.\n" in said
    ends_well(trained)


@pytest.mark.parametrize("fuse", ["launcher.fuse=false", "launcher.fuse=true"])
def test_each_stage_runs_out_of_memory_and_gets_more(run, ends_well, fuse):
    memory = "resources.all.memory"
    run.submit(HEALS, fuse, f"{memory}=100M", f"{memory}_factor=15", f"{memory}_limit=1500M")
    ends_well(run, 400)
    short = set(re.findall(r"^(?:\S+-test\.)?([a-z]+)\S* failed \(memory\)", words(run), re.M))
    if fuse == "launcher.fuse=false":
        assert short == set(STAGES)
    else:  # a job has the most that a task of it needs
        assert "train" in short


def test_memory_is_raised_to_what_a_node_has(trained, ends_well):
    memory = "resources.measure.memory"
    trained.submit(HEALS, f"{memory}=100M", f"{memory}_factor=50", f"{memory}_limit=8G")
    ends_well(trained)
    asked = re.findall(
        r'"task": "seigh.step-000020-test.measure-1".*?"memory": (\d+)', jobs(trained)
    )
    assert asked == ["100", "5000", "4000"]  # the second was refused


def test_too_short_a_time_gets_longer(trained, ends_well):
    """The stage that takes a minute and a half, with what its setup waits for, has one at first."""
    short = "resources.decompose.time=1min"
    trained.submit(HEALS, short, "resources.decompose.setup=[sleep 75]")
    ends_well(trained, 400)


def test_a_node_is_lost_for_good(trained, ends_well, cluster):
    trained.halt(3)
    trained.submit(HEALS)
    pids = trained.halted()
    node = trained.status()["measure-1.0"]["node"]
    cluster.kill_node(node)
    try:
        for pid, index in zip(pids, range(3), strict=True):
            if trained.status()[f"measure-1.{index}"]["node"] == node:
                os.kill(pid, signal.SIGKILL)
        trained.go_on()
        ends_well(trained, 300)
    finally:
        cluster.start_node(node)


def test_the_controller_is_down_for_a_minute(trained, ends_well, cluster):
    """While a worker is killed, and while jobs are submitted."""
    trained.halt(3)
    trained.submit(HEALS)
    pid, *_ = trained.halted()
    time.sleep(6)  # a killed controller forgets the last seconds
    os.kill(pid, signal.SIGKILL)
    trained.go_on()
    cluster.restart_controller("TERM", 60)
    ends_well(trained, 300)


def test_a_submission_waits_for_a_controller_that_is_away(trained, ends_well, cluster):
    from threading import Thread

    away = Thread(target=cluster.restart_controller, args=("TERM", 30))
    away.start()
    time.sleep(2)
    trained.submit(HEALS)
    away.join()
    ends_well(trained)


def test_what_exceeds_a_limit_on_submitted_jobs_is_submitted_later(
    tmp_path, new_run, bring_up, devcluster, results_of
):
    more = ["training.record_steps=[0,20]", "hessian.splits=[train,test]"]
    with tempfile.TemporaryDirectory(prefix="skerch-slurm-") as folder:
        try:
            limited = bring_up(folder, "--submit-limit", 20)
            with new_run(tmp_path / "run") as run:
                run = replace(run, cluster=limited)
                said = run.submit(HEALS, *more).stdout
                assert "MaxSubmitJobLimit" in said
                assert "more tasks later" in said
                run.wait_for_end(600)
                assert {task["state"] for task in run.status().values()} == {"done"}
        finally:
            devcluster("down", folder, check=False)
    alone = tmp_path / "alone"
    run.skerch("run", run.experiment, f"run_dir={alone}", *more, timeout=300)
    assert results_of(run.path) == results_of(alone)


def test_a_task_that_can_never_work_stops_after_two_tries_and_all_else_is_done(run):
    """Of two Hessians, one has a loss that raises."""
    (run.path).mkdir()
    (run.path / "raise").write_text("step-000020-train.measure-1")
    run.submit(HEALS, "hessian.splits=[train,test]")
    run.wait_for_end(300)
    log = Path(run.path, "logs", "seigh.step-000020-train.measure-1.0.log").read_text()
    assert log.count(" starts on ") == 4  # two jobs, and a process in each
    assert "failed twice the same way: ArithmeticError: this loss has no value" in words(run)
    said = run.skerch("status", run.path).stdout
    assert "# once that is mended: it failed twice the same way" in said
