"""Runs by `launcher.name=mpi`: the bytes of a local run, whatever becomes of a rank."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from skerch.jobs.config import load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.launchers.mpi.launch import MpiError
from skerch.jobs.pipeline import task_log
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import bind

FAULTY = """
import os, signal, time
from pathlib import Path
from skerch.jobs.problems import Problem
from skerch.jobs.problems.digits_mlp import digits_mlp

FAULT = Path(__file__).with_name("fault")

def make():
    whole = digits_mlp()

    def loss(model, batch):
        if os.environ.get("PMI_RANK") == "1" and FAULT.exists():
            fault, run = FAULT.read_text().split(maxsplit=1)
            end = time.monotonic() + 60
            while not any(Path(run).glob("seigh/*/measurements/*/blocks/block-*.h5")):
                assert time.monotonic() < end, "no other rank has written a block"
                time.sleep(0.01)
            FAULT.unlink()
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "sleep":
                time.sleep(600)
            raise ValueError("a fault of rank 1")
        return whole.loss_fn(model, batch)

    return Problem(whole.model, whole.data, loss)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the digits, of which rank 1 does once what a file `fault` says."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(FAULTY)
    (folder / "mine.yaml").write_text('problem: {factory: "mine:make"}')
    return folder


@pytest.fixture(scope="module")
def experiment(folder, small_overrides):
    """A function that gives the config for a run directory, with further overrides."""
    # with two batches each block calls the loss
    small = [*small_overrides, "training.record_steps=[60]", "hessian.batch_size=50"]
    return lambda name, *overrides: load(
        folder / "mine.yaml", [*small, f"run_dir={folder / name}", *overrides]
    )


@pytest.fixture(scope="module")
def bytes_of(results_of):
    """A function that gives the results of a run, byte by byte, and what its second round was."""
    return lambda config: (
        results_of(config.run_dir)
        | {path.name: path.read_bytes() for path in Path(config.run_dir).rglob("range.h5")}
    )


@pytest.fixture(scope="module")
def local(experiment):
    """A local run."""
    config = experiment("local")
    assert not complete(config)
    return config


@pytest.fixture
def by_ranks(experiment, local, mpiexec, tmp_path):
    """A function that gives the experiment, trained already, for some ranks."""

    def of(ranks, *overrides):
        ranked = "launcher.name=mpi", f"launcher.workers={ranks}"
        config = experiment(tmp_path, *ranked, *overrides)
        training = RunDir(config.run_dir).training
        shutil.copytree(RunDir(local.run_dir).training, training, dirs_exist_ok=True)
        return config

    return of


@pytest.fixture
def fault(folder):
    """A function that has rank 1 kill itself, sleep or raise once another has written a block."""

    def order(kind, config):
        (folder / "fault").write_text(f"{kind} {config.run_dir}")
        return folder / "fault"

    return order


def blocks(config):
    """The blocks that are there, and when each was written."""
    found = Path(config.run_dir).rglob("block-*.h5")
    return {path: path.stat().st_mtime_ns for path in found}


def wait_until(holds):
    """Look again and again, for a minute at most."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def processes(config):
    """The processes that were started for a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if config.run_dir.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # it has just ended
            continue
    return found


def test_one_rank_trains_too_and_leaves_the_bytes_of_a_local_run(
    experiment, local, bytes_of, mpiexec
):
    config = experiment("of-1")
    bind(RunDir(config.run_dir), config)
    program = [sys.executable, "-m", "skerch.jobs.launchers.mpi", config.run_dir]
    done = subprocess.run([mpiexec, "-n", "1", *program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 eigenpairs from 40 matvecs" in done.stdout
    assert len(bytes_of(local)) == 5
    assert bytes_of(config) == bytes_of(local)


def test_a_killed_rank_ends_all_and_the_next_run_goes_on(by_ranks, fault, local, bytes_of):
    config = by_ranks(2)
    fault("kill", config)
    with pytest.raises(MpiError, match="The ranks ended early: one was killed"):
        complete(config)
    assert not processes(config)
    kept = blocks(config)
    assert 0 < len(kept) < len(blocks(local))
    assert not complete(config)
    assert kept.items() <= blocks(config).items()
    assert bytes_of(config) == bytes_of(local)


def test_ranks_share_the_blocks_of_many_small_rounds(by_ranks, fault, experiment, bytes_of):
    """And go on where a killed one has left them."""
    many = ["sketch.rounds=5", "sketch.block_size=4", "launcher.blocks_per_task=10"]
    alone = experiment("many", *many)
    assert not complete(alone)
    config = by_ranks(2, *many)
    fault("kill", config)
    with pytest.raises(MpiError, match="The ranks ended early: one was killed"):
        complete(config)
    assert 0 < len(blocks(config)) < len(blocks(alone))
    assert not complete(config)
    assert bytes_of(config) == bytes_of(alone)


@pytest.mark.parametrize("blocks_per_task", [1, 10])
def test_ranks_end_with_the_round_that_reached_the_target(
    blocks_per_task, by_ranks, experiment, bytes_of
):
    asked = ["sketch.rounds=15", "sketch.inner=120", "sketch.target={residual: 1.1}"]
    asked.append("sketch.block_size=4")
    alone = experiment(f"target-{blocks_per_task}", *asked, "launcher.blocks_per_task=10")
    assert not complete(alone)
    config = by_ranks(2, *asked, f"launcher.blocks_per_task={blocks_per_task}")
    assert not complete(config)
    assert len(blocks(config)) < 30 + 8
    expected = bytes_of(alone)
    del expected["range.h5"]  # of which it keeps but the last
    assert expected.items() <= bytes_of(config).items()
    records = [next(Path(c.run_dir).rglob("rounds.json")).read_bytes() for c in (alone, config)]
    assert records[0] == records[1]


def test_ranks_share_a_start(by_ranks, experiment, bytes_of):
    chain = ["sketch.start=previous", "training.record_steps=[20,60]", "launcher.blocks_per_task=1"]
    alone = experiment("chain", *chain)
    assert not complete(alone)
    config = by_ranks(2, *chain)
    assert not complete(config)
    assert bytes_of(config) == bytes_of(alone)


def test_what_fails_on_one_rank_fails_its_task_and_hangs_nothing(
    by_ranks, experiment, fault, local, bytes_of
):
    config = by_ranks(3)
    fault("raise", config)
    failures = complete(config)
    measured = {task: words for task, words in failures.items() if ".measure-1." in task}
    assert measured
    log = RunDir(config.run_dir).task_log("seigh.step-000060-test.measure-1.0")
    for task, words in measured.items():
        assert words.startswith("ValueError: a fault of rank 1 (")
        assert words.endswith(f"); the traceback is in {log}")
        assert task_log.records(RunDir(config.run_dir))[task]["error"] == words
    assert "rank 1 on " in log.read_text()
    assert failures["seigh.step-000060-test.merge"].startswith("not run, as it needs seigh.step-")
    assert not complete(experiment(config.run_dir))
    assert bytes_of(config) == bytes_of(local)


def test_an_interrupted_run_leaves_no_rank(by_ranks, fault):
    config = by_ranks(2)
    ordered = fault("sleep", config)

    def interrupt():
        wait_until(lambda: not ordered.exists())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        complete(config)
    assert not processes(config)


@pytest.mark.slow
def test_ranks_end_with_the_process_that_started_them(by_ranks, fault):
    config = by_ranks(2)
    bind(RunDir(config.run_dir), config)
    ordered = fault("sleep", config)
    command = [sys.executable, "-m", "skerch", "run", config.run_dir]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as parent:
        wait_until(lambda: not ordered.exists())
        parent.kill()
    wait_until(lambda: not processes(config))


def test_without_mpiexec_one_sentence_says_what_to_do(by_ranks, monkeypatch, tmp_path):
    config = by_ranks(2)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MpiError, match=r"needs mpiexec, .*pip install mpich"):
        complete(config)


def test_without_a_library_one_sentence_says_what_to_do(by_ranks, monkeypatch):
    config = by_ranks(2)
    monkeypatch.setenv("MPI4PY_LIBMPI", "/nonexistent")
    with pytest.raises(MpiError, match=r"mpi4py finds no MPI library \(.*pip install mpich"):
        complete(config)
    assert not processes(config)


def test_ranks_that_find_themselves_alone_say_so(tmp_path):
    program = [sys.executable, "-m", "skerch.jobs.launchers.mpi", tmp_path]
    done = subprocess.run(
        program, env=os.environ | {"SLURM_STEP_NUM_TASKS": "8"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: 8 ranks were started, and each finds itself alone")
    assert "Traceback" not in done.stderr


def test_methods_of_one_task_a_hessian_leave_the_bytes_of_a_local_run(by_ranks, experiment):
    lanczos = ["method=lanczos", "lanczos.k=5"]
    trace = ["method=trace", "trace.products=30", "trace.deflate=lanczos"]
    for asked in (lanczos, trace):
        alone, config = experiment("local", *asked), by_ranks(2, *asked)
        assert not complete(alone)
        assert not complete(config)
        ours, theirs = (
            {
                path.name: path.read_bytes()
                for path in RunDir(each.run_dir).step(each.method, 60, "test").path.iterdir()
            }
            for each in (config, alone)
        )
        assert len(ours) == 2 + 2 * (config.method == "lanczos")  # its pairs and the gradient
        assert ours == theirs
