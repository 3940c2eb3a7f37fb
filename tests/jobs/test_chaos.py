"""Runs that are killed at random instants and resumed, as `tests/jobs/chaos.py` does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


GROWN = ["sketch.rounds=4", "sketch.inner=200"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "experiment", "options"),
    [
        (12, "digits", []),
        (6, "mnist_mini", []),
        (6, "digits", ["sketch.rounds=8", "launcher.workers=1", "launcher.blocks_per_task=8"]),
        (6, "digits", ["--first=sketch.rounds=2", "--first=sketch.inner=100", *GROWN]),
    ],
    ids=["digits", "mnist_mini", "many rounds", "grows"],
)
def test_killed_runs_end_with_the_same_bytes_whatever_stage_is_struck(
    kills, experiment, options, request
):
    options = [f"--kills={kills}", f"--experiment={experiment}", *options]
    if experiment == "mnist_mini":
        root = request.getfixturevalue("mnist")
        options += [f"problem.root={root}", "training.record_steps=[1000]", "sketch.rounds=3"]
    chaos = subprocess.run(
        [sys.executable, "tests/jobs/chaos.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert chaos.returncode == 0, chaos.stdout + chaos.stderr
