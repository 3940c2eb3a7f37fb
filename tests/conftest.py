"""What some tests need of the machine. Elsewhere they are skipped; where CI=true they fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def needs():
    """A function that ends a test unless what it needs is there."""

    def check(present, what):
        if not present:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs {what}")

    return check


@pytest.fixture(scope="session")
def mnist(needs):
    """The folder that holds MNIST/raw: $MNIST, or beside the repository."""
    root = os.environ.get("MNIST", Path(__file__).parents[2] / "shared" / "data")
    needs((Path(root) / "MNIST" / "raw").is_dir(), f"MNIST in {root}; set MNIST=PATH")
    return Path(root)
