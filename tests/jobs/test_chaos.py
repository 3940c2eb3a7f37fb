"""Runs that are killed at random instants and resumed, as `tests/chaos.py` does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MNIST_MINI = [
    "--experiment=mnist_mini",
    f"problem.root={ROOT.parent / 'shared' / 'data'}",
    "training.record_steps=[1000]",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "options"), [(20, []), (10, MNIST_MINI)], ids=["digits", "mnist"]
)
def test_killed_runs_end_with_the_same_bytes_whatever_stage_is_struck(kills, options):
    chaos = subprocess.run(
        [sys.executable, "tests/chaos.py", f"--kills={kills}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert chaos.returncode == 0, chaos.stdout + chaos.stderr
