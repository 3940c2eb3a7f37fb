"""Tasks that share a job: the bytes of a local run, and after a fault nothing again that is there.

The experiment is halting.yaml with `launcher.fuse`, once with a task that measures all, so that all
is one job, and once with the array of three, whose elements do the layout first.
"""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest

pytestmark = pytest.mark.slow
FUSE = ["launcher.fuse=true", "launcher.heals=0"]
ONE = [*FUSE, "launcher.blocks_per_task=9"]
MEASURE = "measure-1.0"
WHOLE = ("train", "layout-1", MEASURE, "merge", "decompose", "analyze")


@pytest.fixture
def ends_well(local, results_of):
    """A function that waits for a run's end and compares its results with the local run's."""

    def check(run):
        run.wait_for_end()
        assert not [task for task in run.status().values() if task["state"] != "done"]
        assert results_of(run.path) == results_of(local)

    return check


def states(run):
    """The state of each task."""
    return {name: task["state"] for name, task in run.status().items()}


def test_a_killed_task_ends_its_job_and_is_done_again_with_those_that_need_it(run, ends_well):
    run.path.mkdir()
    run.halt(3, MEASURE)
    said = run.submit(*ONE).stdout
    assert "6 tasks are submitted in 1 job" in said
    pid, *_ = run.halted(MEASURE)
    pending = dict.fromkeys(WHOLE[3:], "pending")
    assert states(run) == {"train": "done", "layout-1": "done", "measure-1.0": "running"} | pending
    assert run.status()["merge"]["reason"] == "its turn within its job"
    run.wait(lambda: len(run.blocks()) == 2, "two blocks")
    os.kill(pid, signal.SIGKILL)
    run.go_on(MEASURE)
    run.wait_for_end()
    status, kept = run.status(), run.blocks()
    assert status["measure-1.0"]["reason"] == "killed by SIGKILL (signal 9)"
    assert status["measure-1.0"]["last_line"].endswith(": task 0: Killed")
    for name in WHOLE[3:]:
        assert status[name]["state"] == "failed"
        assert status[name]["reason"] == "needs seigh.step-000020-test.measure-1.0, which failed"
    said = run.submit(*ONE).stdout
    assert ".analyze (first measure-1.0, " in said
    ends_well(run)
    assert kept.items() <= run.blocks().items()


def test_a_task_out_of_memory_in_the_middle_gets_more_and_only_it_counts(run, ends_well):
    run.path.mkdir()
    (run.path / "eat").write_text("seigh.step-000020-test.measure-1.0")
    memory = "resources.all.memory=1800M"  # torch alone may take a GB
    run.submit(*ONE, memory)
    run.wait_for_end()
    status = run.status()
    assert status["measure-1.0"]["reason"] == "out of memory"
    assert status["measure-1.0"]["next"] == "python -m skerch submit run  # asks for 3600 MiB"
    assert status["merge"]["reason"].startswith("needs ")
    (run.path / "eat").unlink()
    run.submit(*ONE, memory, "resources.all.sbatch.begin=now+2")
    assert "run.seigh.step-000020-test.analyze 3600M" in run.queue("%j %m")
    ends_well(run)


def test_elements_of_an_array_do_the_layout_once_and_outlive_who_was_at_it(run, train, ends_well):
    train(run)
    shutil.rmtree(run.path / "seigh")
    run.halt(-1)  # at the layout's first call
    said = run.submit(FUSE[0], "launcher.heals=1").stdout
    assert "measure-1 [0-2] (first layout-1)\n" in said
    assert "7 tasks are submitted in 2 jobs" in said
    run.wait(lambda: list(run.path.glob("halted.*")), "a layout that stops")
    (halted,) = run.path.glob("halted.*")
    time.sleep(2)  # the others wait for it
    found = states(run)
    assert (found["layout-1"], found["measure-1.0"], found["merge"]) == (
        *("running", "pending", "pending"),
    )
    os.kill(int(halted.read_text()), signal.SIGKILL)
    run.go_on()
    ends_well(run)
    log = (run.path / "logs" / "seigh.step-000020-test.layout-1.log").read_text()
    assert log.count("layout-1 done, ") == 1
    again = (run.path / "logs" / "seigh.report.log").read_text()
    alone = f"(first measure-1.{halted.suffix[1:]}, "
    assert f".analyze {alone}" in again
    assert " 4 tasks are submitted in 1 job" in again.replace("\n", " ")


def test_a_job_is_requeued_at_its_time_limit_and_goes_on_where_it_was(run, ends_well):
    run.path.mkdir()
    run.halt(3, MEASURE)
    run.submit(*ONE)
    run.halted(MEASURE)
    job = run.job("measure-1.0")
    run.signal(job, "USR2")  # to all steps, as Slurm does
    run.go_on(MEASURE)
    run.wait(lambda: f"{job}|PENDING" in run.queue(), "a requeue")
    ends_well(run)
    log = (run.path / "logs" / "train.log").read_text()
    assert log.count("train is done already.") == 1
