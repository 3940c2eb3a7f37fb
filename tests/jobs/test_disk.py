"""Disks full or read-only, folders that cannot be used, a killed merge: words, then resume.

Disks are real ones (tmpfs), which takes root to mount. What permission bits forbid is forbidden to
a user of no privileges, as root is above them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from skerch.jobs import config as configs
from skerch.jobs import pipeline
from skerch.jobs.run_dir import RunDir

NOBODY = 65534
STEP = "seigh/step-000020-test"
FOLDERS = [".", "training", "logs", "figures", "seigh", STEP, f"{STEP}/measurements/round-2/blocks"]
FIGURE = "figures/seigh-step-000020-test.png"
MADE_LAST = [f"{STEP}/merged.h5", f"{STEP}/eigh.h5", f"{STEP}/overlap.json", FIGURE, "logs"]


@pytest.fixture
def run(small, skerch):
    """A function that runs the small experiment in a directory: exit status and all words.

    A traceback is raised, or found here where a log has it.
    """

    def run_in(run_dir):
        experiment = run_dir.with_name("small.yaml")
        configs.save(small(f"run_dir={run_dir}"), experiment)
        status, out, err = skerch("run", experiment)
        assert "traceback" not in out + err
        return status, out + err

    return run_in


@pytest.fixture
def shared_folder():
    """A folder that any user can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@contextmanager
def unprivileged():
    """As a user whom permission bits bind."""
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if privileged:
            os.seteuid(0)


def unfinished(reference, run_dir):
    """A copy of the reference whose last stages are to be made again, everyone's to write."""
    shutil.copytree(reference.run_dir, run_dir, dirs_exist_ok=True)
    for name in MADE_LAST:
        path = run_dir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run_dir / STEP / "measurements/round-2/blocks/block-000001.h5").unlink()
    for path in (run_dir, *run_dir.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)


@pytest.mark.slow
def test_a_full_disk_is_said_wherever_it_strikes_and_nothing_is_lost(
    disk, run, reference, results_of
):
    folder, remount = disk
    stages = set()
    for size in range(100, 10_000, 100):
        remount(f"size={size}k")
        status, words = run(folder)
        if status == 0:
            break
        assert status == 1
        assert "No space left on device. Make room" in words
        stages |= {
            task.stage for task in pipeline.tasks(reference) if f"error: {task.id}:" in words
        }
        assert not list(folder.rglob(".*.tmp"))
    assert stages >= {"train", "measure", "range_finder", "merge", "decompose", "analyze"}
    assert results_of(folder) == results_of(reference.run_dir)


def test_a_read_only_run_is_read_and_not_run(disk, run, reference, results_of, skerch):
    folder, remount = disk
    remount("size=100m")
    unfinished(reference, folder)
    remount("ro")
    status, words = run(folder)
    assert status == 1
    assert f"{folder} cannot be used: Read-only file system" in words
    status, out, err = skerch("status", folder, "--verify")
    assert status == 0, out + err
    remount("rw")
    assert run(folder)[0] == 0
    assert results_of(folder) == results_of(reference.run_dir)


@pytest.mark.parametrize("mode", [0o000, 0o555], ids=["no access", "no writing"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_without_permission_is_named(
    shared_folder, run, reference, results_of, folder, mode
):
    run_dir = shared_folder / "run"
    unfinished(reference, run_dir)
    forbidden = run_dir / folder
    forbidden.mkdir(exist_ok=True)
    forbidden.chmod(mode)
    with unprivileged():
        status, words = run(run_dir)
    assert status in (1, 2)
    assert str(forbidden) in words
    assert "Permission denied" in words
    forbidden.chmod(0o777)
    with unprivileged():
        assert run(run_dir)[0] == 0
    assert results_of(run_dir) == results_of(reference.run_dir)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, run, reference, results_of, folder):
    run_dir = tmp_path / "run"
    unfinished(reference, run_dir)
    in_the_way = run_dir / folder
    shutil.rmtree(in_the_way, ignore_errors=True)
    in_the_way.write_text("a file")
    status, words = run(run_dir)
    assert status in (1, 2)
    assert str(in_the_way) in words
    in_the_way.unlink()
    assert run(run_dir)[0] == 0
    assert results_of(run_dir) == results_of(reference.run_dir)


KILLED = """
import os, signal, sys
from skerch.__main__ import main
rename = os.replace
def replace(source, target):
    if "merged" in str(source):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.replace = replace
sys.argv = ["skerch", "run", sys.argv[1]]
main()
"""


def test_a_killed_merge_leaves_its_blocks_and_is_made_again(tmp_path, run, reference, results_of):
    """Killed when all is written, but under a temporary name."""
    run_dir = tmp_path / "run"
    unfinished(reference, run_dir)
    victim = subprocess.run([sys.executable, "-c", KILLED, run_dir], capture_output=True)
    assert victim.returncode == -signal.SIGKILL
    directory = RunDir(run_dir).step("seigh", 20, "test")
    (left_over,) = directory.path.glob(".merged.h5.*.tmp")
    assert left_over.stat().st_size > 0
    assert not directory.merged.exists()
    status, words = run(run_dir)
    assert status == 0
    assert ".measure" not in words
    assert not left_over.exists()
    assert results_of(run_dir) == results_of(reference.run_dir)
