"""How many threads a stage computes with: what is asked for, what the environment says, a share."""

from __future__ import annotations

import os
from argparse import Namespace

import pytest
import torch

from skerch.jobs.launchers import local
from skerch.jobs.launchers.slurm import task
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.run_dir.binding import bind
from skerch.jobs.stages import program as stage
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.program import settle


@pytest.fixture
def threads(small, monkeypatch):
    """A function that gives the threads of a training under some overrides."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: counts.append(count))
    counts: list[int] = []

    def settled(number: str, *overrides: str, stage: str = "train") -> int:
        monkeypatch.setenv("OMP_NUM_THREADS", number)
        config = small(*overrides)
        settle(stage, Context(RunDir(config.run_dir), config, method_name(config)))
        return counts[-1]

    return settled


def test_openmps_variable_is_honoured_unless_threads_are_given(threads):
    assert threads("3", "launcher.threads=null") == 3
    assert threads(" 5,2", "launcher.threads=null") == 5
    assert threads("3", "launcher.threads=2") == 2


@pytest.mark.parametrize("nonsense", ["", "0", "-4", "all", "1e9", "100000", "2.5"])
def test_what_is_no_number_of_threads_leaves_each_worker_its_share(nonsense, threads):
    overrides = ["launcher.threads=null", "launcher.workers=4"]
    assert threads(nonsense, *overrides) == 8
    assert threads(nonsense, *overrides, stage="layout") == 2


@pytest.mark.parametrize(("number", "expected"), [("", 6), ("2", 2)])
def test_a_slurm_task_has_its_cpus_unless_openmps_variable_says_less(
    number, expected, small, monkeypatch
):
    config = small("launcher.threads=null")
    bind(RunDir(config.run_dir), config)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    monkeypatch.setenv("OMP_NUM_THREADS", number)
    seen = []
    monkeypatch.setattr(
        local, "run_task", lambda config, _, **more: seen.append(config.launcher.threads)
    )
    task._run(
        Namespace(run=config.run_dir, task="train", name=None, first=None, requeues=0, shared=False)
    )
    assert seen == [expected]


def test_measurements_keep_the_threads_of_their_manifest(reference, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    context = Context(RunDir(reference.run_dir), reference, "seigh", 20, "test")
    assert stage._threads("measure", context) == 1
