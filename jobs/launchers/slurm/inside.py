"""Within a job of Slurm: its place in an array, its CPUs, and its requeue at the time limit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from skerch.jobs.launchers.slurm.scheduler import SlurmError, requeue


def requeue_at_time_limit(requeues: int, say: Callable[[str], None]) -> None:
    """Within a job: ask to be requeued at the signal before the time limit, some times at most."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # one element has the id of the array, which is all
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{array_index()}"
    count = int(os.environ.get("SLURM_RESTART_COUNT", 0))

    def near(*_: object) -> None:
        if count >= requeues:
            say(f"The time limit is near, and this job was requeued {count} times: no more.")
            return
        say(f"The time limit is near: requeued for the {count + 1}. of {requeues} times.")
        try:
            requeue(job)
        except SlurmError as error:
            say(f"{error} It goes on until it is killed; submit again then.")

    signal.signal(signal.SIGUSR2, near)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


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
