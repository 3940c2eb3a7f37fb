"""One finished run on the digits, made once and shared by the tests that only read it."""

from __future__ import annotations

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

from skerch import __main__ as program
from skerch.jobs import results
from skerch.jobs.config import load

SMALL = [
    "training.max_steps=60",
    "training.record_steps=[20,60]",
    "hessian.splits=[test]",
    "hessian.datapoints=100",
    "hessian.strategy=batched",
    "sketch.outer=20",
    "sketch.block_size=8",
    "launcher.blocks_per_task=2",
    "launcher.threads=1",
]


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The small experiment, run in this process without a fault."""
    config = load("digits", [f"run_dir={tmp_path_factory.mktemp('run')}", *SMALL])
    assert not results.complete(config)
    return config


@pytest.fixture(scope="session")
def results_of():
    """A function that gives the bytes of what a run is for, by file."""
    patterns = ("training/parameters.h5", "seigh/*/merged.h5", "seigh/*/eigh.h5", "seigh/*/*.json")
    return lambda run_dir: {
        str(path.relative_to(run_dir)): path.read_bytes()
        for pattern in patterns
        for path in Path(run_dir).glob(pattern)
    }


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A function that loads a small experiment in a folder of its own, with further overrides."""
    monkeypatch.chdir(tmp_path)
    return lambda *overrides, experiment="digits": load(experiment, [*SMALL, *overrides])


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The digits, trained for 300 steps, 200 eigenpairs from 400 matvecs."""
    run_dir = tmp_path_factory.mktemp("digits")
    config = load(
        "digits",
        [
            f"run_dir={run_dir}",
            "training.record_steps=[100,300]",
            "sketch.outer=200",
            "sketch.inner=400",
            "launcher.threads=1",
        ],
    )
    assert not results.complete(config)
    return config


@pytest.fixture(scope="session")
def skerch():
    """The command line in this process: exit status, stdout and stderr of some arguments.

    What would be a traceback is raised.
    """

    def run(*arguments):
        streams = StringIO(), StringIO()
        mounted = list(program.app.registered_commands)
        try:
            with (
                patch.object(sys, "argv", ["skerch", *map(str, arguments)]),
                redirect_stdout(streams[0]),
                redirect_stderr(streams[1]),
            ):
                program.main()
        except SystemExit as end:
            status = end.code or 0
        else:
            status = 0
        finally:
            program.app.registered_commands[:] = mounted
        return status, *(stream.getvalue() for stream in streams)

    return run
