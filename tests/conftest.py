"""What tests in several folders share: a finished run on the digits, the command line, and needs.

Where the machine lacks what a test needs, the test is skipped, and fails where CI=true. One line at
the end says what was not tested.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings

from skerch import __main__ as program

# Threads that share the cores with other processes take several times as long. Torch, which reads
# this once, is not imported yet, and what tests start inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("same", derandomize=True, database=None)  # in every run
settings.load_profile("same")

WAITING = [f"test_{name}.py" for name in ("allocation", "cost", "fuse", "healing", "sweep")]


def pytest_addoption(parser):
    parser.addoption(
        "--least",
        action="append",
        default=[],
        metavar="MARKER=NUMBER",
        help="fail unless so many tests with a marker have passed",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """With several processes (-n), a file's tests share one, and those that need Slurm two."""
    for item in items:
        group = item.path.name
        if item.get_closest_marker("slurm"):
            group = "another Slurm" if group in WAITING else "Slurm"
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_configure():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Count the tests of a marker that have passed, so that none can vanish unseen."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # one of several processes, which sees its own tests alone
        return
    reports = reporter.stats.get("passed", ())
    passed = Counter(word for report in reports for word in report.keywords)
    for least in session.config.getoption("least"):
        marker, _, number = least.partition("=")
        reporter.write_line(f"{passed[marker]} tests marked {marker} have passed, of {number}")
        if passed[marker] < int(number):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    """Say in one line what was not tested, and how to have it tested."""
    reports = terminalreporter.stats.get("skipped", ())
    skipped = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    counts, ways = [], []
    for reason, number in skipped.items():
        what, _, way = reason.partition(": ")
        counts.append(f"{what} ({number} test{'s' * (number > 1)})")
        ways.append(way)
    if skipped:
        line = f"not tested: {', '.join(counts)}; to have it: {', '.join(ways)}"
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def needs():
    """A function that ends a test unless what it needs is there: "what: how to have it"."""

    def check(present, what):
        if not present and os.environ.get("CI") == "true":
            pytest.fail(f"needs {what}")
        if not present:
            pytest.skip(what)

    return check


@pytest.fixture
def disk(tmp_path, needs):
    """A folder on a disk of its own, and a function that mounts it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", folder, "-o"]
    mounted = subprocess.run([*mount, "size=4k"], capture_output=True).returncode == 0
    needs(mounted, "full and read-only disks: root that may mount")
    yield folder, lambda options: subprocess.run([*mount, f"remount,{options}"], check=True)
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def mnist(needs):
    """The folder that holds MNIST/raw: $MNIST, or beside the repository."""
    root = os.environ.get("MNIST", Path(__file__).parents[2] / "shared" / "data")
    needs((Path(root) / "MNIST" / "raw").is_dir(), "MNIST: MNIST=PATH of the folder with MNIST/raw")
    return Path(root)


@pytest.fixture(scope="session")
def small_overrides():
    """What makes a small experiment of the digits."""
    return [
        "training.lr=0.3",
        "training.max_steps=60",
        "training.record_steps=[20,60]",
        "hessian.splits=[test]",
        "hessian.datapoints=100",
        "hessian.strategy=batched",
        "sketch.outer=20",
        "sketch.inner=40",
        "sketch.rounds=2",
        "sketch.block_size=8",
        "launcher.blocks_per_task=2",
        "launcher.threads=1",
    ]


@pytest.fixture(scope="session")
def reference(tmp_path_factory, small_overrides):
    """The small experiment, run in this process without a fault; for tests that only read it."""
    from skerch.jobs.config import load
    from skerch.jobs.launchers.complete import complete

    config = load("digits", [f"run_dir={tmp_path_factory.mktemp('run')}", *small_overrides])
    assert not complete(config)
    return config


@pytest.fixture(scope="session")
def results_of():
    """A function that gives the bytes of what a run is for, by file."""
    patterns = ("training/parameters.h5", "seigh/*/merged.h5", "seigh/*/eigh.h5", "seigh/*/*.json")
    return lambda run_dir: {
        str(path.relative_to(run_dir)): path.read_bytes()
        for pattern in patterns
        for path in Path(run_dir).glob(pattern)
    }


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


@pytest.fixture(scope="session")
def blocks():
    """A function of a page of docs/: its code blocks in their order, as pairs (language, text)."""
    docs = Path(__file__).parents[1] / "docs"
    return lambda page: re.findall(
        r"^```(\w*)\n(.*?)^```$", (docs / page).read_text(encoding="utf-8"), re.M | re.S
    )
