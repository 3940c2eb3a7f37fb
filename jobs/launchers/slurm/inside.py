"""Within a job of Slurm: its place in an array, its CPUs and time, its steps and its requeue."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from skerch.jobs.launchers.slurm import scheduler
from skerch.jobs.launchers.slurm.programs import SlurmError
from skerch.jobs.run_dir import command

OWN_STEPS = 0xFFFFFFF0  # from here on numbers of steps are Slurm's own: the script, the shell
STARTED = "SKERCH_STARTED"  # a job's variable: when it started, in seconds since the epoch
WHOLE = 0.9  # of a job's time: a task that has less of it began late


def requeue_at_time_limit(
    requeues: int, resumes: bool, say: Callable[[str], None], stuck: Callable[[], str | None]
) -> None:
    """Within a job: ask to be requeued at the signal before the time limit, some times at most.

    So does what `resumes` where it was, and what began late, after other tasks of the job. A job
    that was requeued before and is `stuck` ends at the signal: that sentence is raised where the
    process is then, as a SlurmError.
    """
    job = job_id()
    if job is None:
        return
    count, begun = restarts(), time.time()

    def near(*_: object) -> None:
        now = time.time()
        late = now - begun < WHOLE * (now - float(os.environ.get(STARTED, begun)))
        if count >= requeues or not (resumes or late):
            say(f"The time limit is near, and this job was requeued {count} times: no more.")
            return
        if count and not late and (reason := stuck()):
            raise SlurmError(reason)
        say(f"The time limit is near: requeued for the {count + 1}. of {requeues} times.")
        try:
            scheduler.requeue(job)
        except SlurmError as error:
            say(f"{error} It goes on until it is killed; submit again then.")

    signal.signal(signal.SIGUSR2, near)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


def job_id() -> str | None:
    """Within a job: its id, as 12 or 12_3; None without a job."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # one element has the id of the array, which is all
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{array_index()}"
    return os.environ.get("SLURM_JOB_ID")


def step() -> int | None:
    """Within a step that srun started: its number; None in a job's script or its shell."""
    number = int(os.environ.get("SLURM_STEP_ID") or OWN_STEPS)
    return number if number < OWN_STEPS else None


def is_allocation() -> bool:
    """Within a job, and no step of it: whether it is of several nodes or tasks."""
    within = "SLURM_JOB_ID" in os.environ and step() is None
    return within and tasks() > 1 and shutil.which("srun") is not None


def refuse_copies() -> None:
    """Refuse to do as one of several what one is to do; raises SlurmError."""
    copies = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if step() is not None and copies > 1:
        raise SlurmError(
            f"srun started {copies} copies of this command, and each would do the whole run: start "
            "one, without srun, which uses all nodes of the job; or take srun -n1."
        )


def tell_of_nesting(experiment: str) -> None:
    """Within a job: say that jobs which are submitted do not run in it."""
    if job := job_id():
        print(
            f"Jobs that are submitted within job {job} wait in the queue, and do not run in it; to "
            f"use what it has: {command('run', Path(experiment))}.",
            file=sys.stderr,
        )


def restarts() -> int:
    """Within a job: how often it was requeued."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def array_index() -> int:
    """Within a job: its index in the array."""
    index = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    if not index.isdecimal():
        raise SlurmError("SLURM_ARRAY_TASK_ID is not set; leave --first out for a task alone.")
    return int(index)


def cpus() -> int | None:
    """Within a job: the CPUs that it has, as far as Slurm says."""
    number = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(number) if number.isdecimal() else None


def tasks() -> int:
    """Within a job: for how many tasks it was asked; by default one a node."""
    names = ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES")
    return next((int(os.environ[name]) for name in names if os.environ.get(name)), 1)


def time_limit() -> float:
    """Within a job: the seconds that it may run; infinity where Slurm does not say."""
    job = job_id()
    try:  # of Slurm 23.02
        return float(os.environ["SLURM_JOB_END_TIME"]) - float(os.environ["SLURM_JOB_START_TIME"])
    except (KeyError, ValueError):
        with suppress(SlurmError):
            return math.inf if job is None else scheduler.time_limit(job)
    return math.inf
