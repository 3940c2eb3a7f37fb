"""Copies of one task that meet: the later one leaves."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TextIO

from skerch.jobs.launchers.slurm.inside import job_id, restarts
from skerch.jobs.launchers.slurm.programs import SlurmError

PATIENCE = 60  # seconds that a worker may take to die after its job has ended


@dataclass(frozen=True)
class _Attempt:
    """A process that is at a task, for the how manieth time of which job."""

    job: str | None
    restarts: int
    host: str
    pid: int


@contextmanager
def alone(
    lock: Path, say: Callable[[str], None], until: Callable[[], bool] | None = None
) -> Iterator[bool]:
    """Whether this process is to do the task of a lock, which it holds meanwhile and then removes.

    It is not where one of the same attempt, or of a later one, is at it already: srun started
    several. One of an earlier attempt is no hindrance, as its node was given up. Nor is it one that
    there are no locks: two at one task are harmless.

    Where another job is at it, this waits for its end, or `until` that is true. Raises SlurmError
    where there is no such condition, and the other is not just about to end.
    """
    mine = _Attempt(job_id(), restarts(), socket.gethostname(), os.getpid())
    held = _hold(lock, mine, until)
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


def _hold(lock: Path, mine: _Attempt, until: Callable[[], bool] | None) -> TextIO | _Attempt | None:
    """The lock, or who of the same attempt has it; None where there are no locks, or no need."""
    other = None
    for look in range(PATIENCE) if until is None else count():
        if until and until():
            return None
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
