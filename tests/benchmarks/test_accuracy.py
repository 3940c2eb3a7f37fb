"""The accuracy that is promised, on a Hessian of real digits, in core and through files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_residuals_are_near_the_best_in_core_and_through_files(mnist):
    benchmark = subprocess.run(
        [sys.executable, "-m", "benchmarks", "accuracy", "--quick", "--root", mnist],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert benchmark.returncode == 0, benchmark.stdout + benchmark.stderr
