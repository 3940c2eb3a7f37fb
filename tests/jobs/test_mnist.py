"""Real MNIST digits, through the command line, against the exact Hessian."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_mnist_mini_from_training_to_the_exact_comparison(tmp_path, mnist):
    command = [
        "config/experiment/mnist_mini.yaml",
        f"problem.root={mnist}",
    ]
    command += ["training.record_steps=[0,200]", "training.max_steps=200", f"run_dir={tmp_path}"]

    def skerch(name: str, *options: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "skerch", name, *command, *options],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    assert "355 eigenpairs from 710 matvecs" in skerch("run")
    output = skerch("exhaustive", "--step", "200", "--split", "test")
    assert "355 of 7,030 eigenpairs" in output
    ratios = {
        line.split("│")[1].strip(): float(line.split("│")[4])
        for line in output.splitlines()
        if re.match("│ .*│ +[0-9]", line)
    }
    for index in range(1, 11):
        assert abs(ratios[f"eigenvalue {index}"] - 1) < 1e-3
    assert ratios["residual at rank 355, over the best"] < 1.25
    assert abs(ratios["residual at rank 355, estimated"] - 1) < 0.05
    assert abs(ratios["overlap at k = 355"] - 1) < 0.02
