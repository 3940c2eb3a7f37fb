"""Streaming passes that ranks share: the bits of one process, and errors that all learn of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_two_and_three_ranks_have_the_bits_of_one_and_fail_together(mpiexec):
    program = Path(__file__).with_name("passes.py")
    done = subprocess.run(
        [mpiexec, "-n", "3", sys.executable, program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is done") == 5
