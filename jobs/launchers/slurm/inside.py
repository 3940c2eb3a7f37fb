"""Within a job of Slurm: its place in an array, its CPUs and time, its requeue, its copies."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from skerch.jobs.launchers.slurm import scheduler
from skerch.jobs.launchers.slurm.scheduler import SlurmError

PATIENCE = 60  # seconds that a worker may take to die after its job has ended


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


@dataclass(frozen=True)
class _Attempt:
    """A process that is at a task, for the how manieth time of which job."""

    job: str | None
    restarts: int
    host: str
    pid: int


@contextmanager
def alone(lock: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Whether this process is to do the task of a lock, which it holds meanwhile and then removes.

    It is not where one of the same attempt, or of a later one, is at it already: srun started
    several. One of an earlier attempt is no hindrance, as its node was given up. Nor is it one that
    there are no locks: two at one task are harmless.

    Raises SlurmError where another job is at it, and is not just about to end.
    """
    mine = _Attempt(job_id(), restarts(), socket.gethostname(), os.getpid())
    held = _hold(lock, mine)
    if isinstance(held, _Attempt):
        say(f"Process {held.pid} on {held.host} is at this already, for the same job: this ends.")
        yield False
        return
    try:
        if held is not None:
            with suppress(OSError):  # a full disk
                held.truncate(0)
                held.write(json.dumps(asdict(mine)))
                held.flush()
        yield True
    finally:
        if held is not None:
            _remove(lock, held)


def _hold(lock: Path, mine: _Attempt) -> TextIO | _Attempt | None:
    """The lock, or who of the same attempt has it; None where there are no locks."""
    other = None
    for look in range(PATIENCE):
        try:
            file = lock.open("a+", encoding="utf-8")
        except OSError:  # which the log, that lies beside it, is to name
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, file):  # not removed meanwhile by who had it
                return file
        except BlockingIOError:
            other = _holder(file)
            if other is not None and other.job == mine.job:
                if other.restarts >= mine.restarts:
                    return other
                if look:  # not what a killed one has left, until the next one writes
                    _remove(lock, file)
                    continue
            time.sleep(1.0)
        except OSError:  # some network file systems have none
            _remove(lock, file)
            return None
        file.close()
    if other is None:
        return None
    raise SlurmError(
        f"Job {other.job} is at this task (process {other.pid} on {other.host}): wait until it is "
        "done, or cancel it; then submit again."
    )


def _holder(file: TextIO) -> _Attempt | None:
    """Who has a lock; None where that is not written, or not yet."""
    try:
        file.seek(0)
        return _Attempt(**json.loads(file.read()))
    except (OSError, ValueError, TypeError):
        return None


def _is_at(path: Path, file: TextIO) -> bool:
    """Whether an open file is still the one at a path."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _remove(path: Path, file: TextIO) -> None:
    """Remove an open file, unless there is another in its place, and close it."""
    with suppress(OSError):
        if _is_at(path, file):
            path.unlink()
    with suppress(OSError):
        file.close()
