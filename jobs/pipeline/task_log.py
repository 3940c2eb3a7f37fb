"""What is kept of every task: a log of its own, and one line of `logs/tasks.jsonl` when it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError
from skerch.jobs.pipeline import Task, usage
from skerch.jobs.problems import describe
from skerch.jobs.run_dir import RunDir

Progress = Callable[[int, int, str], None]  # done, total (0: unknown) and the unit of both

HAD: dict[str, Any] = {  # by every record
    "id": str,
    "stage": str,
    "started": int | float,
    "seconds": int | float,
    "error": str | None,
}
USED: dict[str, Any] = {  # by a record since they are written
    **dict.fromkeys(("made", "peak", "cpus", "gpus"), int | None),
    **dict.fromkeys(("node", "job"), str | None),
    "cpu": int | float | None,
}
INTERVAL = 10.0  # seconds between two progress lines
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
STARTS = re.compile(rf"^({TIME}) (?:job )?\S+ starts on ", re.MULTILINE)
PROCESS = re.compile(rf"^{TIME} \S+ starts on (\S+), pid (\d+)$", re.MULTILINE)
REFUSED = re.compile(r"^error: (.*)$", re.MULTILINE)  # before it started
ENDED = re.compile(rf"^{TIME} \S+ (?:done|failed), ", re.MULTILINE)
PROGRESS = re.compile(rf"^{TIME} (\d+(?:/\d+)? \D.*/s(?:, \d+ s left)?)$")
FAILED = re.compile(rf"^{TIME} \S+ failed, [\d.]+ s: (.*)$", re.MULTILINE)


def silent(done: int, total: int, unit: str) -> None:
    """A progress callback that shows nothing."""


@contextmanager
def recorded(run: RunDir, task: Task) -> Iterator[Progress]:
    """Log a task's progress, end and any traceback; yields its progress callback."""
    started, cpu, there = time.time(), usage.cpu_seconds(), _count(task)
    usage.reset_peak()
    path = run.task_log(task.id)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise SkerchError(
            f"{path} cannot be written: {error.strerror}. Give permission there, then run again."
        ) from error
    _append(path, f"{_now()} {task.id} starts on {socket.gethostname()}, pid {os.getpid()}\n")
    error_line = None
    try:
        yield _lines(path)
    except BaseException as error:
        error_line = "interrupted" if isinstance(error, KeyboardInterrupt) else describe(error)
        _append(path, traceback.format_exc())
        raise
    finally:
        made = _count(task) - there
        used = {"made": made, "peak": usage.peak(), "cpu": round(usage.cpu_seconds() - cpu, 3)}
        _record(run, task, started, error_line, used)


def _count(task: Task) -> int:
    """How many of a task's outputs are there."""
    return sum(map(os.path.exists, task.outputs))


def record_death(run: RunDir, task: Task, pid: int, ending: str) -> bool:
    """Record how a process of this machine ended, if it left the task without a word."""
    attempt = last_attempt(run, task.id)
    if process(attempt) != pid:
        return False
    started = datetime.fromisoformat(attempt.split(maxsplit=1)[0])
    _record(run, task, started.timestamp(), ending)
    return True


def ending(status: int, number: int = 0) -> str:
    """How a process ended: by the number of a signal, or else with an exit status."""
    if number in set(signal.Signals):
        return f"killed by {signal.Signals(number).name} (signal {number})"
    return f"ended with exit status {status}"


def _record(
    run: RunDir, task: Task, started: float, error: str | None, used: dict[str, Any] | None = None
) -> None:
    """The last line of a task's log, and the one in `logs/tasks.jsonl`."""
    seconds = round(time.time() - started, 3)
    outcome = "done" if error is None else "failed"
    said = "" if error is None else ": " + " ".join(error.split())
    _append(run.task_log(task.id), f"{_now()} {task.id} {outcome}, {seconds} s{said}\n")
    record = {"id": task.id, "stage": task.stage, "started": started, "seconds": seconds}
    record |= {"error": error} | (used or {}) | usage.place()
    _append(run.task_records, "\n" + json.dumps(record) + "\n")


def records(run: RunDir) -> dict[str, dict[str, Any]]:
    """The latest record of each task that ended, by id."""
    return {record["id"]: record for record in attempts(run)}


def attempts(run: RunDir) -> list[dict[str, Any]]:
    """The record of each attempt at a task that said how it ended, oldest first.

    `seconds` and `cpu` are wall and processor time, the latter with that of child processes that
    ended; `made` is how many of its outputs it wrote that were not there; `peak` is the most
    memory, in MiB, of the process meanwhile. `cpus` and `gpus` are what it had, on `node` and in
    Slurm's `job` (None without one). Under MPI they are the first rank's.
    What an old record lacks is None; a line that is no record is left out.
    """
    found = []
    if run.task_records.is_file():
        for line in run.task_records.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                read = {key: record[key] for key in HAD} | {key: record.get(key) for key in USED}
            except (ValueError, TypeError, KeyError):  # of a process killed while it wrote
                continue
            if all(isinstance(read[key], kind) for key, kind in (HAD | USED).items()):
                found.append(read)
    return found


def last_attempt(run: RunDir, task_id: str, since: float = 0.0) -> str:
    """The end of a task's log, from where it last started; nothing if that was before `since`."""
    text = _end(run.task_log(task_id))
    *_, start = (None, *STARTS.finditer(text))
    if start is None:
        return text
    when = datetime.fromisoformat(start[1]).timestamp()
    return text[start.start() :] if when >= int(since) else ""


def error(attempt: str) -> str | None:
    """The sentence with which an attempt failed, if it came so far."""
    found = FAILED.search(attempt) or REFUSED.search(attempt)
    return found and found[1]


def process(attempt: str) -> int | None:
    """The id of the process of an attempt that began on this machine and has not said its end."""
    found = PROCESS.search(attempt)
    if not found or found[1] != socket.gethostname() or ENDED.search(attempt):
        return None
    return int(found[2])


def _end(path: Path, size: int = 65536) -> str:
    """The last bytes of a file as text."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def progress_line(done: int, total: int, unit: str, seconds: float) -> str:
    """How far a task is, how fast, and how long it will take."""
    rate = done / max(seconds, 1e-9)
    if not total:
        return f"{done} {unit}, {rate:.3g}/s"
    return f"{done}/{total} {unit}, {rate:.3g}/s, {(total - done) / rate:.0f} s left"


def _append(path: Path, text: str) -> None:
    """One write in append mode, so that lines of several processes do not mix.

    What there is no room for is dropped: a task does not fail for its log.
    """
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, text.encode(errors="replace"))
        finally:
            os.close(descriptor)


def _lines(path: Path) -> Progress:
    """Plain lines with the rate and the time that remains, at most one in `INTERVAL` seconds."""
    first = last = time.monotonic()

    def progress(done: int, total: int, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        if not done or (now - last < INTERVAL and done != total):
            return
        last = now
        _append(path, f"{_now()} {progress_line(done, total, unit, now - first)}\n")

    return progress


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
