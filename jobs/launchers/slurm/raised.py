"""What tasks get the next time: more memory or time where it was too little for one of a stage."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from skerch.errors import SkerchError
from skerch.jobs.config.resources import Resources
from skerch.jobs.launchers.slurm.observed import Submitted
from skerch.jobs.pipeline import Task
from skerch.jobs.run_dir import RunDir

WORDS = {  # how a task failed, units in text and as they are typed, and another way out
    "memory": ("ran out of memory", "MiB", "16G", "M", ", or take smaller batches or blocks"),
    "time": ("had too little time", "min", "4h", "min", ""),
}


class SubmitError(SkerchError):
    """Jobs that cannot be submitted as things are."""


@dataclass(frozen=True)
class Request:
    """What a task asks for; None leaves it to the cluster."""

    memory: int | None  # MiB
    time: int | None  # minutes


def next_request(
    run: RunDir,
    tasks: Iterable[Task],
    missing: Container[str],
    known: Submitted,
    wanted: Resources,
) -> Request:
    """What the tasks of a stage get: the most of what each of `tasks` must have.

    One that lacked memory or time gets `memory_factor` or `time_factor` times as much; what was
    given once is given again, until the user asks for something else.

    Raises SubmitError where that is more than it may have.
    """
    memory, time = wanted.memory, wanted.minutes
    for task in tasks:
        whole = known.latest.get(task.id)
        if whole is None:
            continue
        last = whole.own(task.id)
        lacked = known.lacked(run, task, missing) if task.id in missing else None
        if last.asked == wanted.memory and last.memory is not None:
            memory = max(memory or 0, last.memory)
        if lacked == "memory" and last.asked == wanted.memory:
            more = _more("memory", task, whole.memory, wanted.most_memory, wanted.memory_factor)
            memory = max(memory or 0, more)
        if last.asked_time == wanted.minutes and last.time is not None:
            time = max(time or 0, last.time)
        if lacked == "time" and last.asked_time == wanted.minutes:
            more = _more("time", task, whole.time, wanted.most_minutes, wanted.time_factor)
            time = max(time or 0, more)
    return Request(memory, time)


def _more(what: str, task: Task, last: int | None, most: int | None, factor: float) -> int:
    """Of memory or time, after `last` was too little."""
    key = f"resources.{task.stage}.{what}"
    words, unit, example, short, way_out = WORDS[what]
    if last is None or most is None:
        raise SubmitError(f"{task.id} {words}; set {key}, as in {key}={example}.")
    if last >= most:
        limit = f"{key}_limit ({most}{short})"
        raise SubmitError(
            f"{task.id} {words} with {last} {unit}; raise {key} and {limit}{way_out}."
        )
    return min(round(last * factor), most)
