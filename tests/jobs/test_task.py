"""A task as a job runs it, what it leaves in its log, and the memory that it gets next."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from unittest.mock import patch

import pytest

from skerch.jobs.config.resources import Resources
from skerch.jobs.launchers.slurm import copies
from skerch.jobs.launchers.slurm.chain import line
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.observed import Submitted
from skerch.jobs.launchers.slurm.programs import SlurmError
from skerch.jobs.launchers.slurm.raised import SubmitError, next_request
from skerch.jobs.launchers.slurm.scheduler import Element
from skerch.jobs.launchers.slurm.script import script
from skerch.jobs.pipeline import Task
from skerch.jobs.run_dir import RunDir

LAYOUT, MEASURE = "seigh.step-000020-test.layout-1", "seigh.step-000020-test.measure-1"


@pytest.fixture
def run(reference, tmp_path):
    """A finished run, to be damaged."""
    return RunDir(shutil.copytree(reference.run_dir, tmp_path / "run"))


def task(*arguments, **environment):
    command = [sys.executable, "-m", "skerch.jobs.launchers.slurm.task", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_an_element_of_an_array_does_its_own_blocks(run):
    blocks = run.step("seigh", 20, "test").measurements(1) / "blocks"
    lost = blocks / "block-000003.h5"
    content = lost.read_bytes()
    lost.unlink()
    done = task(run.path, MEASURE, "--first", 1, SLURM_ARRAY_TASK_ID="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert lost.read_bytes() == content


def test_a_task_that_is_done_is_not_done_again_and_an_unknown_one_is_refused(run):
    assert task(run.path, "train").stdout == "train is done already.\n"
    refused = task(run.path, "tarin")
    assert refused.returncode == 1
    assert refused.stderr == f"error: {run.path} has no task tarin.\n"
    refused = task(run.path, MEASURE, "--first", 0, SLURM_ARRAY_TASK_ID="")
    assert "SLURM_ARRAY_TASK_ID is not set" in refused.stderr


def test_logs_are_printed_alone_together_and_to_their_end(run, skerch):
    whole = run.task_log(LAYOUT).read_text()
    assert skerch("logs", run.path, LAYOUT) == (0, whole, "")
    lines = skerch("logs", run.path, "layout-1", "--follow")[1].splitlines()
    assert [line for line in lines if line.startswith(f"{LAYOUT}  ")] == [
        f"{LAYOUT}  {line}" for line in whole.splitlines()
    ]
    status, _, words = skerch("logs", run.path, "nothing")
    assert status == 2
    assert "has no task nothing; give an id" in words
    run.task_log(LAYOUT).unlink()
    assert f"it will be {run.task_log(LAYOUT)}" in skerch("logs", run.path, LAYOUT)[1]


def test_a_script_names_one_log_and_what_it_waits_for(tmp_path):
    submission = Submission("token", "seigh", "merge", None, after=("4?", "5"))
    log = tmp_path / "it's 100 %.log"
    text = script(submission, Resources(), tmp_path / "a run", log)
    assert text.count("#SBATCH --output") == 1
    assert text.count(" --output ") == 1
    assert shlex.split(text.split("srun ")[1])[2] == str(log).replace("%", "%%")
    assert "#SBATCH --dependency=afterok:5,afterany:4\n" in text
    assert line(submission).endswith("merge, after 4 (however that ends), 5")


KILLED = "slurmstepd: error: StepId=7.0 exceeded memory limit (5 > 4), being killed\n"


@pytest.fixture
def memory(tmp_path):
    """What a task gets that ended in some state, with these last words, at its last memory."""

    def ask(state="FAILED", words="", asked=1000, last=1000, **wanted):
        run = RunDir(tmp_path)
        log = run.task_log("train")
        log.parent.mkdir(exist_ok=True)
        log.write_text(f"2100-01-01T00:00:00+00:00 job 7 starts on n1\n{words}")
        submission = Submission(
            "token", "seigh", "train", None, asked=asked, memory=last, when=time.time(), job="7"
        )
        known = Submitted([submission], {("token", None): Element("7", state)})
        wanted = Resources(**({"memory": 1000, "memory_limit": 3000} | wanted))
        task = Task("train", "train", {}, (), ())
        return next_request(run, [task], ["train"], known, wanted).memory

    return ask


def test_a_task_that_ran_out_of_memory_gets_more_up_to_the_limit(memory):
    assert memory("OUT_OF_MEMORY") == 2000
    assert memory(words=KILLED) == 2000
    assert memory(words="RuntimeError: DefaultCPUAllocator: can't allocate memory\n") == 2000
    assert memory("OUT_OF_MEMORY", last=2000) == 3000
    with pytest.raises(
        SubmitError, match=r"ran out of memory with 3000 MiB; raise resources\.train"
    ):
        memory("OUT_OF_MEMORY", last=3000)
    with pytest.raises(SubmitError, match=r"set resources\.train\.memory, as in"):
        memory("OUT_OF_MEMORY", memory=None, memory_limit=None, asked=None, last=None)


def test_a_task_that_failed_otherwise_keeps_its_memory_and_the_users_word_counts_anew(memory):
    assert memory(last=2000) == 2000
    assert memory(words="torch.OutOfMemoryError: CUDA out of memory.\n") == 1000
    assert memory("OUT_OF_MEMORY", last=3000, memory=5000) == 5000


@contextmanager
def at_work(lock, job, restarts=0):
    """This process as one of a job that is at a task, unless another is; whether it is."""
    environment = {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restarts)}
    with patch.dict(os.environ, environment), copies.alone(lock, print) as first:
        yield first


def test_a_copy_leaves_a_task_to_the_first_process_and_a_later_attempt_does_not(run):
    run.parameters.unlink()
    lock = run.task_lock("train")
    with at_work(lock, "7", restarts=1):
        for restarts in ("0", "1"):
            copy = task(run.path, "train", SLURM_JOB_ID="7", SLURM_RESTART_COUNT=restarts)
            assert (copy.returncode, copy.stderr) == (0, "")
            assert copy.stdout == (
                f"Process {os.getpid()} on {socket.gethostname()} is at this already, for the same "
                "job: this ends.\n"
            )
            assert not run.parameters.exists()
        later = task(run.path, "train", SLURM_JOB_ID="7", SLURM_RESTART_COUNT="2")
        assert (later.returncode, later.stdout) == (0, "")
        assert run.parameters.exists()
        assert not lock.exists()


def test_another_job_waits_for_a_task_to_end_and_then_fails(run, monkeypatch):
    monkeypatch.setattr(copies, "PATIENCE", 2)
    lock = run.task_lock("train")
    said = rf"Job 7 is at this task \(process {os.getpid()} on {socket.gethostname()}\): wait"
    with at_work(lock, "7"), pytest.raises(SlurmError, match=said), at_work(lock, "8"):
        pass
    ending = at_work(lock, "7")
    ending.__enter__()
    threading.Timer(0.5, ending.__exit__, (None, None, None)).start()
    with at_work(lock, "8") as first:
        assert first
    assert not lock.exists()


def test_what_a_killed_worker_leaves_and_a_file_system_without_locks_are_no_hindrance(
    run, monkeypatch
):
    lock = run.task_lock("train")
    lock.write_text('{"job": "7", "restarts": 3, "host": "n1", "pid": 1}')
    with at_work(lock, "7") as first:
        assert first

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(copies.fcntl, "flock", flock)
    with at_work(lock, "7") as first, at_work(lock, "8") as second:
        assert first
        assert second
    assert not lock.exists()
