"""Whole runs here: what is done, what is missing, and that nothing is lost or mixed up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import h5py
import pytest

from skerch.decompositions.eigh_file import EighFile
from skerch.jobs import pipeline
from skerch.jobs.commands import results
from skerch.jobs.config import ConfigError, load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.pipeline import task_log
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import RunDirError, bind, locked
from skerch.jobs.run_dir.training_files import RecordedError
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.program import execute


def outcome(config):
    """The bits of every merged array, eigenvalue and eigenvector of a run."""
    found = {}
    run = RunDir(config.run_dir)
    for step in config.training.record_steps:
        for split in config.hessian.splits:
            directory = run.step("seigh", step, split)
            with h5py.File(directory.merged) as merged:
                for name in ("leftouter", "probe", "summary/gram", "summary/cross"):
                    found[step, split, name] = merged[name][...].tobytes()
            with EighFile(directory.eigh) as eigh:
                found[step, split, "values"] = eigh.eigenvalues.numpy().tobytes()
                found[step, split, "vectors"] = eigh.eigenvectors[:].numpy().tobytes()
    return found


def stages(config):
    return [task.stage for task in pipeline.missing(pipeline.tasks(config))]


def test_running_again_does_nothing(reference, capsys):
    assert stages(reference) == []
    before = task_log.records(RunDir(reference.run_dir))
    assert not complete(reference)
    assert task_log.records(RunDir(reference.run_dir)) == before


def test_worker_processes_give_the_same_bits(small, reference):
    config = small("launcher.workers=3")
    assert not complete(config)
    assert outcome(config) == outcome(reference)


@pytest.mark.parametrize("pattern", ["hessian_data.pt", "round-1/blocks/*0001.h5"])
def test_a_killed_run_goes_on_to_the_same_bits(small, reference, pattern):
    config = small("launcher.workers=2")
    bind(RunDir(config.run_dir), config)
    command = [sys.executable, "-m", "skerch", "run", str(RunDir(config.run_dir).config)]
    victim = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    while not any(RunDir(config.run_dir).path.rglob(pattern)) and victim.poll() is None:
        time.sleep(0.002)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert stages(config)
    assert not complete(small())
    assert outcome(config) == outcome(reference)
    assert not list(RunDir(config.run_dir).path.rglob(".*.tmp"))


@pytest.mark.parametrize(
    ("number", "status", "words"), [(signal.SIGKILL, -9, ""), (signal.SIGINT, 130, "Interrupted")]
)
def test_workers_end_when_their_parent_is_stopped(small, number, status, words):
    config = small("launcher.workers=2", "training.max_steps=100000", "training.batch_size=1")
    bind(RunDir(config.run_dir), config)
    command = [sys.executable, "-m", "skerch", "run", str(RunDir(config.run_dir).config)]
    parent = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = RunDir(config.run_dir).task_log("train")
    deadline = time.monotonic() + 60
    while not (log.exists() and "pid " in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    worker = int(log.read_text().split("pid ")[1])
    assert worker != parent.pid
    parent.send_signal(number)
    assert words in parent.communicate(timeout=60)[1]
    assert parent.returncode == status
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(worker)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("deleted", "again"),
    [
        ("eigh.h5", ["decompose"]),
        ("overlap.json", ["analyze"]),
        ("measurements/round-1/blocks/block-000001.h5", []),
        ("measurements", []),
        ("merged.h5", []),
    ],
)
def test_only_what_something_missing_needs_is_made_again(small, reference, deleted, again):
    config = small()
    shutil.copytree(reference.run_dir, config.run_dir)
    target = RunDir(config.run_dir).step("seigh", 20, "test").path / deleted
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert stages(config) == again
    assert not complete(config)


def test_a_lost_merge_is_made_again_from_what_is_lost_too(small, reference):
    config = small()
    shutil.copytree(reference.run_dir, config.run_dir)
    directory = RunDir(config.run_dir).step("seigh", 20, "test")
    (directory.measurements(1) / "blocks" / "block-000001.h5").unlink()
    directory.range(2).unlink()
    directory.merged.unlink()
    directory.eigh.unlink()
    assert stages(config) == ["measure", "range_finder", "merge", "decompose"]
    assert not complete(config)
    assert outcome(config) == outcome(reference)


def test_three_rounds_run_and_resume_and_are_merged_by_hand_alike(small, skerch, tmp_path):
    config = small("sketch.rounds=3", "training.record_steps=[60]")
    assert not complete(config)
    expected = outcome(config)
    directory = RunDir(config.run_dir).step("seigh", 60, "test")
    measurements = directory.measurements(1).parent
    merged = tmp_path / "by_hand.h5"
    status, _, _ = skerch("merge_hdf5", "--in_path", measurements, "--out_path", merged)
    assert status == 0
    assert merged.read_bytes() == directory.merged.read_bytes()
    assert not directory.range(2).exists()  # as it is no longer in use
    for lost in (directory.range(3), directory.merged, directory.eigh):
        lost.unlink()
    (directory.measurements(2) / "blocks" / "block-000000.h5").unlink()
    again = ["range_finder", "measure", "range_finder", "merge", "decompose"]
    assert stages(config) == again
    assert not complete(config)
    assert outcome(config) == expected


def test_without_blocks_and_columns_the_eigenpairs_are_the_same(small, reference):
    expected = outcome(reference)
    for override in ("keep_blocks=false", "consolidate=false"):
        config = small(override, f"run_dir=run-{override[:4]}")
        assert not complete(config)
        directory = RunDir(config.run_dir).step("seigh", 20, "test")
        with EighFile(directory.eigh) as eigh:
            assert eigh.eigenvalues.numpy().tobytes() == expected[20, "test", "values"]
            assert eigh.eigenvectors[:].numpy().tobytes() == expected[20, "test", "vectors"]
        blocks = list(directory.path.glob("measurements/*/blocks/*.h5"))
        assert bool(blocks) == (override != "keep_blocks=false")
        assert stages(config) == []


def test_eigenvectors_come_from_blocks_where_there_is_no_merged_copy(small, reference):
    config = small("consolidate=false")
    assert not complete(config)
    directory = RunDir(config.run_dir).step("seigh", 20, "test")
    directory.eigh.unlink()
    (directory.measurements(2) / "blocks" / "block-000000.h5").unlink()
    assert stages(config) == ["measure", "decompose"]
    assert not complete(config)
    with EighFile(directory.eigh) as eigh:
        found = eigh.eigenvectors[:].numpy().tobytes()
    assert found == outcome(reference)[20, "test", "vectors"]


def test_a_worker_refuses_inputs_that_the_array_was_not_laid_out_for(small, reference):
    config = small()
    shutil.copytree(reference.run_dir, config.run_dir)
    run = RunDir(config.run_dir)
    ours, other = run.step("seigh", 20, "test"), run.step("seigh", 60, "test")
    (ours.measurements(1) / "blocks" / "block-000000.h5").unlink()
    ours.merged.unlink()
    ours.eigh.unlink()
    shutil.copy(other.measurements(1) / "manifest.json", ours.measurements(1))
    with pytest.raises(RecordedError, match="is of other parameters"):
        execute("measure", Context(run, config, "seigh", 20, "test"))


def test_a_range_of_another_first_round_is_refused(small, reference):
    config = small()
    shutil.copytree(reference.run_dir, config.run_dir)
    run = RunDir(config.run_dir)
    ours, other = run.step("seigh", 20, "test"), run.step("seigh", 60, "test")
    ours.merged.unlink()
    ours.eigh.unlink()
    shutil.copy(other.range(2), ours.range(2))
    assert "other measurements" in complete(config)["seigh.step-000020-test.merge"]
    shutil.rmtree(ours.measurements(1).parent)
    assert not complete(config)
    assert outcome(config) == outcome(reference)


def test_eigenpairs_of_other_data_are_not_analysed(small, reference):
    config = small()
    shutil.copytree(reference.run_dir, config.run_dir)
    run = RunDir(config.run_dir)
    directory = run.step("seigh", 60, "test")
    with h5py.File(run.parameters, "r+") as file:
        file["parameters"][0, 1] += 1
    directory.overlap.unlink()
    with pytest.raises(RecordedError, match="is of other parameters"):
        execute("analyze", Context(run, config, "seigh", 60, "test"))
    with pytest.raises(RunDirError, match=r"round-1/manifest\.json is of other measurements"):
        complete(config)


def test_results_are_never_taken_for_those_of_another_config(small, reference):
    for override, lost in (
        ("training.lr=0.01", "training/training_config.yaml"),
        ("sketch.seed=7", "seigh/hessian_config.yaml"),
        ("hessian.dtype=float64", None),
    ):
        config = small(override, f"run_dir={override.partition('=')[0]}")
        shutil.copytree(reference.run_dir, config.run_dir)
        if lost:
            (RunDir(config.run_dir).path / lost).unlink()
        with pytest.raises(ConfigError, match=override.partition("=")[0]):
            complete(config)


def test_a_failed_start_binds_nothing(small):
    assert complete(small("hessian.datapoints=100000"))
    assert not complete(small())


def test_a_moved_run_directory_stays_one_run(small, reference, monkeypatch):
    config = small()
    moved = RunDir(config.run_dir).path.with_name("moved, [x] 'y'")
    shutil.copytree(reference.run_dir, moved)
    for name in (moved, moved / "config.yaml"):
        assert load(name).run_dir == str(moved)
        assert not complete(load(name))
        results.print_table(load(name))


def test_two_local_runs_do_not_share_a_directory(small):
    config = small()
    run = RunDir(config.run_dir)
    bind(run, config)
    with locked(run), pytest.raises(RunDirError, match="Another process is running tasks"):
        complete(config)


def test_a_zero_hessian_is_said_to_be_one(small, tmp_path):
    (tmp_path / "linear.py").write_text(
        """
import torch
from torch.utils.data import TensorDataset
from skerch.jobs.problems import Problem

def make():
    return Problem(
        model=lambda: torch.nn.Linear(4, 1),
        data=lambda split: TensorDataset(torch.ones(50, 4), torch.ones(50, 1)),
        loss_fn=lambda model, batch: model(batch[0]).mean(),
    )
"""
    )
    (tmp_path / "linear.yaml").write_text(
        "problem: {factory: 'linear:make'}\nhessian: {datapoints: 20, subset: first}\n"
        "training: {max_steps: 2, batch_size: 10}\nsketch: {outer: 1}\n"
    )
    failures = complete(load(tmp_path / "linear.yaml"))
    assert "is zero" in failures["seigh.step-000000-train.decompose"]


def test_a_hessian_that_is_zero_as_the_training_diverged_is_not_measured(small):
    config = small("training.lr=1e6", "training.record_steps=[60]")
    failures = complete(config)
    first = next(iter(failures.values()))
    assert first.startswith("The training has diverged: at step 60 the test loss is")
    assert "Lower training.lr (now 1000000.0)" in first
    assert not list(RunDir(config.run_dir).path.glob("**/blocks/*.h5"))


def test_another_sketch_under_another_name_needs_no_training(small, reference):
    config = small("name=wide", "sketch.seed=25")
    shutil.copytree(reference.run_dir, config.run_dir)
    assert "train" not in stages(config)
    assert not complete(config)
    with pytest.raises(ConfigError, match=r"sketch\.seed: 25 -> 26"):
        complete(small("name=wide", "sketch.seed=26"))


def test_a_failing_task_takes_down_what_needs_it_and_nothing_else(small, reference, capsys):
    config = small("name=again")
    shutil.copytree(reference.run_dir, config.run_dir)
    run = RunDir(config.run_dir)
    blocks = run.step("again", 20, "test").measurements(1) / "blocks"
    bind(run, config)
    blocks.parent.mkdir(parents=True)
    blocks.touch()
    failures = complete(config)
    assert "block-000000.h5 cannot be written" in failures["again.step-000020-test.measure-1.0"]
    assert all("step-000020" in task for task in failures)
    assert "block-000000.h5 cannot be written" in capsys.readouterr().err
    assert run.step("again", 60, "test").overlap.exists()
    blocks.unlink()
    assert not complete(config)
