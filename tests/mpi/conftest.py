"""Tests with real ranks. They wait for each other, so that two cores are enough for three."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("mpi")


@pytest.fixture
def mpiexec(needs, monkeypatch):
    """The path of mpiexec; ranks have one thread each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    beside = str(Path(sys.executable).parent)
    found = shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")
    needs(found and find_spec("mpi4py"), "mpiexec and mpi4py: pip install mpich mpi4py")
    return found
