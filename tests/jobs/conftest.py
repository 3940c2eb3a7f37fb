"""Runs on the digits: a small one for each test, a larger one made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from skerch.jobs.config import load
from skerch.jobs.launchers.complete import complete


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Have figures made and written, but not drawn, which is two thirds of a small run's time.

    Slow tests draw theirs, and so do runs that several tests share.
    """
    if "slow" not in request.keywords:
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).touch())


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
            "training.lr=0.3",
            "training.record_steps=[100,300]",
            "sketch.outer=200",
            "sketch.inner=400",
            "launcher.threads=1",
        ],
    )
    assert not complete(config)
    return config
