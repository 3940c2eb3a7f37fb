"""What a job has for the tasks of `run`, and when `run` takes it."""

from __future__ import annotations

import math
import os

import pytest

from skerch.errors import UsageError
from skerch.jobs import launchers
from skerch.jobs.launchers import local, srun
from skerch.jobs.launchers.slurm import allocation, scheduler
from skerch.jobs.launchers.slurm.allocation import Room
from skerch.jobs.launchers.slurm.programs import SlurmError

SHOWN = """JobId=12 JobName=interactive
   JobState=RUNNING Reason=None Dependency=(null)
   JOB_GRES=gpu:a100:3
     Nodes=n[1-2,07],m1 CPU_IDs=0-2,5 Mem={0} GRES=gpu:a100:2(IDX:0-1)
     Nodes=n3 CPU_IDs=0 Mem={0} GRES=gpu:1(IDX:0),shard:a100:8(IDX:0)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A function that gives Slurm's commands something to print, and a job's variables."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(variables=(), **printed):
        for name, text in ({"srun": ""} | printed).items():
            (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
            (tmp_path / name).chmod(0o755)
        for name, value in dict(variables).items():
            monkeypatch.setenv(f"SLURM_{name}", value)

    return make


def test_the_room_of_a_job_is_what_it_has_on_its_nodes(slurm):
    slurm(scontrol=SHOWN.format(3072))
    assert allocation.allocation("12") == (Room(17, 5 * 3072, 9), Room(4, 3072, 2))


def test_memory_that_slurm_does_not_share_out_is_no_bound(slurm):
    slurm(scontrol=SHOWN.format(0))
    assert allocation.allocation("12") == (Room(17, math.inf, 9), Room(4, math.inf, 2))


def test_a_job_that_ends_has_no_room(slurm):
    slurm(scontrol="JobId=12\n   JobState=COMPLETING Reason=None\n")
    with pytest.raises(SlurmError, match=r"^Job 12 does not run \(COMPLETING\); get another"):
        allocation.allocation("12")


def test_room_is_for_as_many_as_fit():
    node, task = Room(4, 2000, 0), Room(1, 600, 0)
    assert node.holds([task] * 3)
    assert not node.holds([task] * 4)
    assert Room(4, math.inf, 0).holds([Room(1, 0, 0)] * 4)
    assert not node.holds([Room(1, 0, 1)])
    assert str(Room(1, 1536, 2)) == "1 CPU, 1536 MiB, 2 GPUs"


SALLOC = {"JOB_ID": "12", "JOB_NUM_NODES": "3"}


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({}, local),
        (SALLOC, srun),
        (SALLOC | {"STEP_ID": str(0xFFFFFFFA), "STEP_NUM_TASKS": "1"}, srun),  # salloc's shell
        (SALLOC | {"JOB_NUM_NODES": "1", "NTASKS": "8"}, srun),
        (SALLOC | {"JOB_NUM_NODES": "1"}, local),
        (SALLOC | {"STEP_ID": "0", "STEP_NUM_TASKS": "1"}, local),  # srun --pty bash
    ],
)
def test_a_run_takes_an_allocation_of_several(slurm, variables, launcher):
    slurm(variables)
    assert launchers.load("auto") is launcher.launch
    assert launchers.load("local") is local.launch


def test_of_several_copies_none_runs(slurm):
    slurm(SALLOC | {"STEP_ID": "0", "STEP_NUM_TASKS": "4"})
    with pytest.raises(SlurmError, match=r"^srun started 4 copies of this command"):
        launchers.load("auto")


def test_srun_needs_an_allocation(small, slurm):
    slurm()
    with pytest.raises(SlurmError, match=r"^launcher.name=srun is for within a job"):
        launchers.load("srun")(small(), [], None)


def test_jobs_to_wait_for_are_known_to_slurm_and_may_end_well(slurm, monkeypatch):
    rows = [
        ("12", "N/A", "RUNNING", "None"),
        ("13", "4", "COMPLETED", "None"),
        ("13", "5", "FAILED", "NonZeroExitCode"),
        ("15", "N/A", "CANCELLED", "Dependency"),
        ("16", "N/A", "PENDING", "DependencyNeverSatisfied"),
    ]
    monkeypatch.setattr(scheduler, "ask_queue", lambda patience: [[*row, "", ""] for row in rows])
    assert scheduler.known(None) == set()
    for jobs in ("12,13_4", "13?,13_5?,15?,16?"):
        assert scheduler.known(jobs) == {*jobs.split(",")}
    for wrong in ("", "14", "x12", "12,afterok:13", "12??", "13_6", "12_0"):
        with pytest.raises(UsageError, match=r"^--after .*: squeue shows no such job"):
            scheduler.known(wrong)
    for id, end in {"13": "FAILED", "13_5": "FAILED", "15": "CANCELLED", "16": "Depend"}.items():
        with pytest.raises(UsageError, match=rf"^--after {id}: job {id} does not end well \({end}"):
            scheduler.known(f"12,{id}")
