"""Faults of workers, of nodes, of Slurm and of the submitting shell.

After each, `status` says what happened, and the run ends, by requeue or by one more `submit`, with
the bytes of a run that met no fault.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
REASON = "%i|%T|%r"
MEASURE = "seigh.step-000020-test.measure-1"
WORKERS = (0, 1, 2)
DEPENDENTS = ("merge", "decompose", "analyze")
RAISES = '            raise ArithmeticError("this loss has no value")'  # a line of halting.py


@pytest.fixture
def ends_well(local, results_of):
    """A function that waits for a run's end and compares its results with the local run's."""

    def check(run, kept=None):
        run.wait_for_end()
        assert not [task for task in run.status().values() if task["state"] != "done"]
        assert results_of(run.path) == results_of(local)
        assert (kept or {}).items() <= run.blocks().items()

    return check


def has(task, **expected):
    """Whether `status` says this of a task."""
    return expected.items() <= task.items()


def running(pids):
    """Those of these processes that have not ended."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_killed_worker_loses_only_its_block(trained, ends_well):
    trained.halt(3)
    trained.submit()
    pid, *_ = trained.halted()
    trained.wait(lambda: len(trained.blocks()) == 6, "two blocks of each worker")
    os.kill(pid, signal.SIGKILL)
    trained.go_on()
    trained.wait_for_end()
    status, kept = trained.status(), trained.blocks()
    killed = "killed by SIGKILL (signal 9)"
    assert has(status["measure-1.0"], state="failed", exit_code="137:0", reason=killed)
    assert status["measure-1.0"]["last_line"].endswith(": task 0: Killed")
    said = trained.skerch("status", trained.path).stdout
    assert (
        f"{MEASURE}.0 failed (job {status['measure-1.0']['job']}): {killed}\n  last line: " in said
    )
    assert "  next: python -m skerch submit run  # with a larger resources.measure.memory" in said
    assert status["measure-1.1"]["state"] == status["measure-1.2"]["state"] == "done"
    for name in DEPENDENTS:
        assert has(status[name], state="failed", reason=f"needs {MEASURE}.0, which failed")
    assert len(kept) == 8
    page = trained.path / "report.html"  # by the last job of the chain
    assert "0 of 1 Hessians are there" in page.read_text()
    assert "measure-1 [0]\n" in trained.submit().stdout
    ends_well(trained, kept)
    assert "1 of 1 Hessians are there" in page.read_text()


def test_cancelled_tasks_are_submitted_beside_those_that_live(trained, ends_well, cluster):
    trained.halt(3)
    trained.submit()
    trained.halted()
    cluster.run("scancel", f"{trained.job('measure-1.0')}_[0,2]")
    trained.wait(lambda: len(trained.queue()) <= 5, "two cancelled tasks")
    status = trained.status()
    for name in ("measure-1.0", "measure-1.2"):
        assert has(status[name], state="failed", reason="CANCELLED")
    assert status["measure-1.1"]["state"] == "running"
    for name in DEPENDENTS:
        assert has(status[name], state="pending", reason=f"needs {MEASURE}.0, which failed")
    kept = trained.blocks()
    assert "measure-1 [0,2]\n" in trained.submit().stdout
    trained.go_on()
    ends_well(trained, kept)


def test_at_the_time_limit_a_task_goes_on_later_some_times(trained, ends_well, cluster):
    """The first worker is sent the signal that Slurm sends the second near the limit of a minute;
    then it stays until its limit.
    """
    trained.halt(3)
    measure = "resources.measure"
    trained.submit(f"{measure}.time=1min", f"{measure}.grace=5", f"{measure}.requeues=1")
    trained.halted()
    trained.go_on(2)
    first, second, _ = (f"{trained.job('measure-1.0')}_{index}" for index in WORKERS)
    trained.halt(1, 0)  # once it is requeued
    trained.signal(first, "USR2")
    trained.wait(lambda: f"{first}|PENDING|BeginTime" in trained.queue(REASON), "a requeue")
    status = trained.status()
    assert has(status["measure-1.0"], state="pending", reason="BeginTime", job=first)
    assert has(status["measure-1.1"], state="running", job=second)
    trained.halted(0)
    trained.wait(lambda: f"{second}|PENDING|BeginTime" in trained.queue(REASON), "Slurm's signal")
    trained.go_on(1)
    trained.wait(lambda: trained.status()["measure-1.0"]["state"] == "failed", "a limit", 300)
    status, kept = trained.status(), trained.blocks()
    assert has(status["measure-1.0"], reason="TIMEOUT")
    log = Path(status["measure-1.0"]["log"]).read_text()
    assert log.count("requeued for the 1. of 1 times") == 1
    assert "requeued 1 times: no more" in log
    trained.go_on(0)
    assert "measure-1 [0]\n" in trained.submit().stdout
    ends_well(trained, kept)


def test_a_preempted_task_goes_on_later(trained, ends_well, cluster):
    def state(job):
        return cluster.run("squeue", "-h", "-j", job, "-o", "%T").stdout

    trained.halt(3)
    trained.submit()
    trained.halted()
    urgent = cluster.run(
        *("sbatch", "--parsable", "-p", "urgent", "-N", "3", "--exclusive", "-o", "/dev/null"),
        *("--wrap", "sleep 600"),
    ).stdout.strip()
    trained.wait(lambda: "RUNNING" in state(urgent), "the urgent job")
    status, kept = trained.status(), trained.blocks()
    for index in WORKERS:
        assert has(status[f"measure-1.{index}"], state="pending")
    cluster.run("scancel", urgent)
    trained.go_on()
    ends_well(trained, kept)


def test_a_task_out_of_memory_gets_more_up_to_a_limit(trained, ends_well, cluster):
    trained.halt(1)
    memory = "resources.measure.memory"
    more = [f"{memory}_factor=15", f"{memory}_limit=1500M"]
    trained.submit(f"{memory}=100M", *more)
    trained.wait_for_end()
    status = trained.status()
    for index in WORKERS:
        task = status[f"measure-1.{index}"]
        assert has(task, state="failed", reason="out of memory", exit_code="137:0")
        # Slurm writes both, in any order.
        assert re.search("Killed|memory limit", task["last_line"])
        assert task["next"] == "python -m skerch submit run  # asks for 1500 MiB"
    refused = trained.submit(f"{memory}=100M", f"{memory}_limit=100M", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        f"error: {MEASURE}.0 ran out of memory with 100 MiB; raise {memory} and {memory}_limit"
    )
    assert not trained.queue()
    trained.submit(f"{memory}=100M", *more)
    assert "run.seigh.step-000020-test.measure-1 1500M" in trained.queue("%j %m")
    trained.go_on()
    ends_well(trained)


def test_a_worker_that_outlives_its_node_does_no_harm(trained, ends_well, cluster):
    trained.halt(3)
    trained.submit()
    pids, status = trained.halted(), trained.status()
    nodes = [status[f"measure-1.{index}"]["node"] for index in WORKERS]
    there = [index for index in WORKERS if nodes[index] == nodes[0]]
    late = [pids[index] for index in there]
    cluster.kill_node(nodes[0])
    try:
        for pid in late:
            os.kill(pid, signal.SIGSTOP)
        trained.go_on()
        requeued = [f"{trained.job('measure-1.0')}_{index}|PENDING|BeginTime" for index in there]
        trained.wait(lambda: set(requeued) <= set(trained.queue(REASON)), "a requeue")
        status = trained.status()
        for index in there:
            assert has(status[f"measure-1.{index}"], state="pending", reason="BeginTime")
        ends_well(trained)
        for pid in late:
            os.kill(pid, signal.SIGCONT)
        trained.wait(lambda: not running(late), "the end of late workers")
    finally:
        cluster.start_node(nodes[0])
    ends_well(trained)
    trained.skerch("status", trained.path, "--verify")


def test_a_killed_controller_is_not_missed(trained, ends_well, cluster):
    trained.halt(3)
    trained.submit()
    trained.halted()
    saved_state(trained)
    cluster.restart_controller()
    status, kept = trained.status(), trained.blocks()
    for index in WORKERS:
        assert has(status[f"measure-1.{index}"], state="running")
    for name in DEPENDENTS:
        assert has(status[name], state="pending", reason="Dependency")
    assert " 0 jobs, and 6 were live" in trained.submit().stdout
    trained.go_on()
    ends_well(trained, kept)


def test_jobs_that_a_killed_controller_has_forgotten_are_lost(trained, ends_well, cluster):
    """Its state is that of before, so that it gives the same ids again."""
    old = shutil.copy(saved_state(trained), trained.path)

    def sockets():  # of the job steps that slurmd takes for running
        return cluster.directory.glob("spool/*/n?_*.*")

    trained.halt(3)
    trained.submit()
    trained.halted()
    assert any(sockets())
    job = trained.job("measure-1.0")  # the first to be submitted
    shutil.copy(old, saved_state(trained))
    cluster.restart_controller()
    trained.wait(lambda: not any(sockets()), "the end of workers whose jobs are unknown")
    for task in trained.status().values():
        assert task["state"] == ("done" if task["stage"] in ("train", "layout") else "lost")
    kept = trained.blocks()
    trained.halt(1)
    trained.submit()
    assert trained.job("measure-1.0") == job
    assert " 0 jobs, and 6 were live" in trained.submit().stdout
    trained.go_on()
    ends_well(trained, kept)


def saved_state(run):
    """The file of the controller's jobs, which it writes some seconds after a change."""
    state, now = run.cluster.directory / "state" / "job_state", time.time()
    change = ("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=:")
    run.cluster.run("scancel", run.cluster.run(*change).stdout.strip())
    run.wait(lambda: state.stat().st_mtime > now, "a saved state")
    return state


SBATCH = """#!/bin/sh
echo >>calls
[ $(wc -l <calls) = 3 ] || exec {sbatch} "$@"
kill -KILL $PPID
until [ -e late ]; do sleep 0.1; done
{then} "$@"
"""


@pytest.mark.parametrize("heard", [True, False])
def test_a_killed_submit_leaves_nothing_twice(trained, ends_well, cluster, on_path, heard):
    """Killed in its third call of sbatch, which itself lives on, and then submits or dies."""
    sbatch = shutil.which("sbatch")
    stubs = on_path(sbatch=SBATCH.format(sbatch=sbatch, then=sbatch if heard else "true"))
    trained.halt(1)
    assert trained.submit(env=stubs, check=False).returncode == -signal.SIGKILL
    refused = trained.submit(check=False)
    assert refused.returncode == 1
    assert "Another process is running tasks" in refused.stderr
    (trained.path.parent / "late").touch()
    trained.wait(lambda: not lock_is_held(trained.path / ".lock"), "the end of sbatch")
    status = trained.status()
    assert status["measure-1.0"]["state"] in ("pending", "running")
    assert status["merge"]["state"] == ("pending" if heard else "missing")
    assert status["decompose"]["state"] == "missing"
    trained.submit()
    names = Counter(name.rpartition(".")[2] for name in trained.queue("%j"))
    assert names == {"measure-1": 3} | dict.fromkeys((*DEPENDENTS, "report"), 1)
    trained.go_on()
    ends_well(trained)


def lock_is_held(path):
    """Whether a process holds the lock."""
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture
def disk(disk):
    """A folder on a disk of its own, and a function that says how many KiB there are to be free."""
    folder, remount = disk

    def leave(free):
        remount(f"size={shutil.disk_usage(folder).used // 1024 + free}k")

    remount("size=100m")
    return folder, leave


def test_a_full_disk_in_the_middle_of_a_write_costs_the_block(disk, trained, ends_well):
    folder, leave = disk
    run = replace(trained, path=folder / "run")
    shutil.move(trained.path, run.path)
    run.halt(2)
    run.submit()
    run.halted()
    leave(100)  # one block and a half
    run.go_on()
    run.wait_for_end()
    status, kept = run.status(), run.blocks()
    failed = [f"measure-1.{i}" for i in WORKERS if status[f"measure-1.{i}"]["state"] == "failed"]
    assert len(failed) >= 2
    for name in failed:
        assert has(status[name], exit_code="1:0")
        assert "No space left on device. Make room" in status[name]["reason"]
        assert "No space left on device. Make room" in status[name]["last_line"]
    assert not list(run.round.glob("blocks/.*"))
    leave(100_000)
    run.submit()
    ends_well(run, kept)


def test_a_task_that_always_fails_takes_down_what_needs_it(trained, ends_well):
    trained.halt(3, 0)
    trained.submit()
    trained.halted(0)
    (trained.path / "raise").touch()
    trained.go_on(0)
    trained.wait_for_end()
    status, kept = trained.status(), trained.blocks()
    assert has(status["measure-1.0"], state="failed", exit_code="1:0")
    source = Path(__file__).with_name("halting.py")
    line = 1 + source.read_text().splitlines().index(RAISES)
    reason = f"ArithmeticError: this loss has no value ({source}:{line})"
    assert has(status["measure-1.0"], reason=reason, next="python -m skerch submit run")
    assert "error: " in status["measure-1.0"]["last_line"]
    assert "this loss has no value" in status["measure-1.0"]["last_line"]
    for name in DEPENDENTS:
        assert has(status[name], state="failed", reason=f"needs {MEASURE}.0, which failed")
    trained.submit()
    trained.wait_for_end()
    assert has(trained.status()["measure-1.0"], state="failed", exit_code="1:0")
    (trained.path / "raise").unlink()
    trained.submit()
    ends_well(trained, kept)


def test_with_accounting_a_silent_squeue_is_no_loss(
    trained, ends_well, needs, devcluster, bring_up, on_path, tmp_path
):
    for program in ("slurmdbd", "mariadbd"):
        present = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")
        needs(present, "accounting: slurm/devcluster/install.sh --accounting on Debian")
    folder, silent = tmp_path / "cluster", on_path(squeue="#!/bin/sh\nexit 1")
    folder.mkdir()
    try:
        run = replace(trained, cluster=bring_up(folder, "--accounting"))
        run.halt(3)
        run.submit()
        pid, *_ = run.halted()
        os.kill(pid, signal.SIGKILL)
        run.go_on()
        run.wait_for_end()
        failed = {"state": "failed", "exit_code": "9:0"}  # sacct takes 128 off
        run.wait(lambda: has(run.status(env=silent)["measure-1.0"], **failed), "what sacct says")
        assert "measure-1 [0]\n" in run.submit(env=silent).stdout
        ends_well(run)
    finally:
        devcluster("down", folder)
