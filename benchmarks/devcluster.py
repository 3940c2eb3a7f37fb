"""A Slurm on this machine, slurm/devcluster, and commands on it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.harness import ROOT

SCRIPT = ROOT / "slurm" / "devcluster" / "devcluster.sh"
CORES = len(os.sched_getaffinity(0))


@contextmanager
def cluster(folder: str, nodes: int = CORES) -> Iterator[None]:
    """A devcluster that remembers all jobs, for the commands of this process.

    A job fills a node.
    """
    directory = f"{folder}/cluster"
    os.environ |= {
        "DEVCLUSTER_MIN_JOB_AGE": "86400",
        "SLURM_CONF": f"{directory}/slurm.conf",
        "OMP_NUM_THREADS": "1",
    }
    try:
        subprocess.run([SCRIPT, "up", "--nodes", str(nodes), directory], check=True, stdout=2)
        yield
    finally:
        subprocess.run([SCRIPT, "down", directory])


def says(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def skerch(*arguments: str) -> tuple[str, float]:
    """What a command of skerch prints, and the seconds that it takes."""
    begin = time.monotonic()
    found = says(sys.executable, "-m", "skerch", *arguments)
    return found, time.monotonic() - begin


def wait_for_all() -> None:
    """Until no job is left."""
    while says("squeue", "-h", "-t", "PENDING,RUNNING,COMPLETING"):
        time.sleep(0.5)
