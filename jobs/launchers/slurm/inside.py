"""Within a job of Slurm: its place in an array, its CPUs and time, and its requeue."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from contextlib import suppress

from skerch.jobs.launchers.slurm import scheduler
from skerch.jobs.launchers.slurm.scheduler import SlurmError


def requeue_at_time_limit(
    requeues: int, say: Callable[[str], None], stuck: Callable[[], str | None]
) -> None:
    """Within a job: ask to be requeued at the signal before the time limit, some times at most.

    A job that was requeued before and is `stuck` ends at the signal: that sentence is raised where
    the process is then, as a SlurmError.
    """
    job = job_id()
    if job is None:
        return
    count = restarts()

    def near(*_: object) -> None:
        if count >= requeues:
            say(f"The time limit is near, and this job was requeued {count} times: no more.")
            return
        if count and (reason := stuck()):
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


def time_limit() -> float:
    """Within a job: the seconds that it may run; infinity where Slurm does not say."""
    job = job_id()
    try:  # of Slurm 23.02
        return float(os.environ["SLURM_JOB_END_TIME"]) - float(os.environ["SLURM_JOB_START_TIME"])
    except (KeyError, ValueError):
        with suppress(SlurmError):
            return math.inf if job is None else scheduler.time_limit(job)
    return math.inf
