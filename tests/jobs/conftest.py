"""Runs on the digits: a small one for each test, a larger one made once, and the command line."""

from __future__ import annotations

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest.mock import patch

import pytest

from skerch import __main__ as program
from skerch.jobs import results
from skerch.jobs.config import load


@pytest.fixture
def small(tmp_path, monkeypatch, small_overrides):
    """A function that loads a small experiment in a folder of its own, with further overrides."""
    monkeypatch.chdir(tmp_path)
    return lambda *overrides, experiment="digits": load(experiment, [*small_overrides, *overrides])


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
