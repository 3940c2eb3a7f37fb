"""The plain scripts in slurm/, submitted by sbatch alone, without the launcher."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest

from skerch.jobs.config import load
from skerch.jobs.launchers.complete import complete

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[2] / "slurm"


@pytest.fixture
def overrides(small_overrides):
    """One small Hessian: two measurement tasks, then one."""
    return [*small_overrides, "training.record_steps=[60]", "launcher.blocks_per_task=4"]


@pytest.fixture
def environment(cluster):
    """As a shell has it in which the Python of these tests is activated."""
    path = os.pathsep.join([str(Path(sys.executable).parent), cluster.env["PATH"]])
    return cluster.env | {"PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def submit_all(cluster, environment):
    """A function that submits a chain, waits until all is over, and gives each job's state."""

    def run(*arguments):
        out = cluster.run(SCRIPTS / "submit_all.sh", *arguments, env=environment).stdout
        jobs = dict(re.findall(r"^job (\d+): (.+)$", out, re.MULTILINE))
        ask = ("squeue", "-h", "-t", "all", "-j", ",".join(jobs), "-O", "ArrayJobID,State")
        states, end = {}, time.monotonic() + 300
        while not states or set(states.values()) & {"PENDING", "RUNNING", "COMPLETING"}:
            assert time.monotonic() < end, states
            time.sleep(0.5)
            rows = (line.split() for line in cluster.run(*ask).stdout.splitlines())
            states |= {jobs[job]: state for job, state in rows}
        return states

    return run


def test_plain_sbatch_gives_the_bits_of_a_local_run(submit_all, overrides, results_of, tmp_path):
    there = tmp_path / 'a "run", it\'s 100% odd'
    states = submit_all("digits", *overrides, f"run_dir={there}")
    assert len(states) == 9
    assert set(states.values()) == {"COMPLETED"}
    logs = {path.name for path in (there / "logs").iterdir()}
    hessian = "seigh.step-000060-test"
    assert {"train.log", f"{hessian}.measure-1.0.log", f"{hessian}.measure-1.1.log"} <= logs

    config = load("digits", [*overrides, f"run_dir={tmp_path / 'here'}"])
    assert not complete(config)
    expected = results_of(config.run_dir)
    assert len(expected) == 4
    assert results_of(there) == expected


def test_a_failed_stage_keeps_its_exit_status_and_takes_down_the_rest(
    submit_all, overrides, cluster, environment, tmp_path
):
    states = submit_all("digits", *overrides, "hessian.datapoints=505", f"run_dir={tmp_path}")
    assert states.pop("train") == "FAILED"
    assert set(states.values()) == {"CANCELLED"}
    assert "multiple of its 10 classes" in (tmp_path / "logs" / "train.log").read_text()

    command = ("sbatch", "-W", "-o", tmp_path / "log", SCRIPTS / "stage.sbatch", tmp_path)
    done = cluster.run(*command, "measure", "--step", "7", env=environment, check=False)
    assert done.returncode == 2
    assert "--step 7 is not recorded" in (tmp_path / "log").read_text()
