"""`run` within an allocation, whose nodes it uses, and `submit` after a user's jobs.

A run has the bytes of a local one, whatever became of its steps, and nothing of it lives on.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
NODES = ["salloc", "--nodes=3", "--ntasks=6", "--mem=2000M"]
MEASURE = "seigh.step-000020-test.measure-1"


@dataclass(frozen=True)
class Allocation:
    """A job without a program, and the environment of a shell within it."""

    job: str
    env: dict[str, str]


@pytest.fixture
def allocation(cluster):
    """An `Allocation` of three nodes, with two CPUs of each."""
    said = cluster.run(*NODES, "--no-kill", "--no-shell").stderr
    job = re.search(r"Granted job allocation (\d+)", said)[1]
    shell = {"SLURM_JOB_ID": job, "SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS": "6"}
    yield Allocation(job, shell | {"SLURM_MEM_PER_NODE": "2000", "SLURM_CPUS_PER_TASK": "1"})
    cluster.run("scancel", job)


@pytest.fixture
def begin(allocation, trained):
    """A function that begins `run` within the allocation."""
    begun = []

    def start(*overrides):
        command = [sys.executable, "-m", "skerch", "run", str(trained.experiment)]
        env = trained.cluster.env | allocation.env | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [*command, f"run_dir={trained.path}", *overrides],
            env=env,
            cwd=trained.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def ends_well(begin, local, results_of):
    """A function that runs what is missing and compares its results with the local run's."""

    def check(run, kept=None):
        process = begin()
        stdout, stderr = process.communicate(timeout=180)
        assert process.returncode == 0, stdout + stderr
        assert results_of(run.path) == results_of(local)
        assert (kept or {}).items() <= run.blocks().items()
        assert not list(run.path.glob("logs/*.lock"))

    return check


def steps(run, allocation):
    """The nodes of the allocation's steps."""
    lines = run.cluster.run("squeue", "-h", "-s", "-j", allocation.job, "-o", "%i %N").stdout
    return [line.split()[1] for line in lines.splitlines() if line.split()[0][-1].isdecimal()]


def test_a_run_takes_all_nodes_of_salloc(run, local, results_of):
    command = [sys.executable, "-m", "skerch", "run", run.experiment, f"run_dir={run.path}"]
    env = run.cluster.env | {"OMP_NUM_THREADS": "1"}
    said = run.cluster.run(*NODES, *command, cwd=run.path.parent, env=env).stdout
    assert re.search(r"^Tasks run as steps of job \d+, which has 6 CPUs, 6000 MiB; ", said, re.M)
    assert "[8/8] seigh.step-000020-test.analyze: " in said
    assert results_of(run.path) == results_of(local)


def test_workers_run_at_once_each_on_a_node(trained, allocation, begin, ends_well):
    trained.halt(1)
    process = begin("resources.measure.memory=1500M")
    trained.halted()
    assert sorted(steps(trained, allocation)) == ["n1", "n2", "n3"]
    trained.go_on()
    assert process.wait(120) == 0
    ends_well(trained)


def test_a_killed_step_loses_only_its_block(trained, begin, ends_well):
    trained.halt(3)
    process = begin()
    pid, *_ = trained.halted()
    trained.wait(lambda: len(trained.blocks()) == 6, "two blocks of each worker")
    os.kill(pid, signal.SIGKILL)
    trained.go_on()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"error: {MEASURE}.0: its step is over, killed by SIGKILL (signal 9)" in stderr
    status, kept = trained.status(), trained.blocks()
    assert "killed by SIGKILL (signal 9)" in status["measure-1.0"]["reason"]
    assert status["measure-1.1"]["state"] == status["measure-1.2"]["state"] == "done"
    assert len(kept) == 8
    ends_well(trained, kept)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_steps_of_a_run_that_is_ended_end(trained, allocation, begin, ends_well, end):
    trained.halt(3)
    process = begin()
    pids = trained.halted()
    kept = trained.blocks()
    process.send_signal(end)
    process.wait(20)
    trained.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "their ends", 20)
    trained.wait(lambda: not steps(trained, allocation), "no step", 20)
    trained.go_on()
    ends_well(trained, kept)


def test_a_step_out_of_memory_says_so_and_one_that_has_no_room_too(trained, begin, ends_well):
    process = begin("resources.measure.memory=50M")
    _, stderr = process.communicate(timeout=120)
    assert f"error: {MEASURE}.0: out of memory; raise resources.measure.memory" in stderr
    process = begin("resources.measure.memory=3000M")
    _, stderr = process.communicate(timeout=120)
    needs = "it needs 1 CPU, 3000 MiB, and no node of job "
    assert f"error: {MEASURE}.0: {needs}" in stderr
    ends_well(trained)


def test_tasks_of_a_node_that_fails_run_on_others(trained, allocation, begin, ends_well):
    trained.halt(3)
    process = begin("resources.measure.memory=1500M")
    trained.halted()
    trained.cluster.kill_node("n3")
    try:
        logs = [trained.path / f"logs/{MEASURE}.{i}.log" for i in range(3)]
        trained.wait(lambda: any("its node failed" in p.read_text() for p in logs), "a lost node")
        trained.go_on()
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stdout + stderr
        ends_well(trained)
    finally:
        trained.cluster.start_node("n3")


def test_a_job_that_ends_ends_its_run_in_a_sentence(trained, allocation, begin):
    trained.halt(1)
    process = begin()
    trained.halted()
    trained.cluster.run("scancel", allocation.job)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"error: Job {allocation.job} does not run (" in stderr


def test_copies_of_run_are_refused(run):
    command = [sys.executable, "-m", "skerch", "run", run.experiment, f"run_dir={run.path}"]
    done = run.cluster.run(*NODES, "srun", "--ntasks=2", *command, check=False, cwd=run.path.parent)
    assert done.returncode == 1
    assert done.stderr.count("error: srun started 2 copies of this command") == 2
    assert not run.path.exists()


def test_submit_within_a_job_says_that_its_jobs_do_not_run_there(trained, allocation):
    said = trained.submit("--dry-run", env=allocation.env).stderr
    assert said.startswith(f"Jobs that are submitted within job {allocation.job} wait in the queue")


def test_first_jobs_wait_for_jobs_of_the_users(trained, local, results_of, tmp_path):
    wrap = ["sbatch", "--parsable", "--chdir", tmp_path, "--output=/dev/null", "--wrap"]
    until = "until [ -e go ]; do sleep 0.1; done; exit"
    good = trained.cluster.run(*wrap, f"{until} 0").stdout.strip()
    bad = trained.cluster.run(*wrap, f"{until} 1").stdout.strip()
    refused = trained.submit("--after", f"{good},99999", check=False)
    assert refused.returncode == 2
    assert "error: --after 99999: squeue shows no such job of yours" in refused.stderr
    said = trained.submit("--after", f"{good},{bad}?").stdout
    assert f"measure-1 [0-2], after {good}, {bad} (however that ends)\n" in said
    assert f"after {good}" not in said.split("\n", 1)[1]
    assert {task["state"] for task in trained.status().values()} == {"pending", "done"}
    (tmp_path / "go").touch()
    trained.wait_for_end()
    assert results_of(trained.path) == results_of(local)


def test_a_chain_does_not_begin_after_a_job_that_fails(trained):
    wrap = ["sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 5; exit 1"]
    job = trained.cluster.run(*wrap).stdout.strip()
    trained.submit("--after", job)
    trained.wait_for_end()
    assert trained.status()["measure-1.0"]["state"] == "failed"
    assert trained.status()["measure-1.0"]["reason"] == "CANCELLED"
    assert not trained.blocks()
