"""What a run cost, stage by stage, and what its stages are to ask for next time.

A task's own record says what its attempt used. A scheduler's accounting adds what a job took around
its tasks, and the attempts that were killed before they could write a record.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from skerch.jobs.config import Config
from skerch.jobs.config.resources import AUTO, is_automatic, taken
from skerch.jobs.config.stages import STAGES
from skerch.jobs.launchers.slurm import accounting, programs, scheduler
from skerch.jobs.launchers.slurm.accounting import Start
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.observed import STALLED, Submitted
from skerch.jobs.pipeline import task_log
from skerch.jobs.run_dir import RunDir

STAGE = re.compile(r"([a-z_]+)(-\d+)?(\.\d+)?$")  # in a task's id, with its round and its number
SKEW = 5.0  # seconds by which the clocks of two machines may differ
MEMORY = (1.2, 64, 100)  # of the largest used: times, and MiB more, up to the next of so many MiB
TIME = (1.5, 5)  # of the longest: times, and minutes at least
AGAIN = 2  # times what an attempt had for which it was too little
Lack = Literal["memory", "time"]
Proposal = dict[str, dict[str, str]]  # memory and time by stage, as a cluster file has them


@dataclass(frozen=True)
class Attempt:
    """An attempt at a task that has ended; None is not known."""

    task: str
    stage: str
    done: bool = False
    seconds: float | None = None
    cpu: float | None = None  # seconds of processor time
    peak: int | None = None  # MiB
    cpus: int | None = None  # that a scheduler gave it
    gpus: int = 0
    memory: int | None = None  # MiB that it asked for
    time: int | None = None  # minutes, likewise
    lack: Lack | None = None  # for which it failed


@dataclass(frozen=True)
class StageCost:
    """What the attempts at a stage's tasks cost; None is not known, or was not asked."""

    stage: str
    tasks: int
    attempts: int
    cpu_hours: float | None
    cpu_hours_asked: float | None  # CPUs times wall time
    cpu_efficiency: float | None  # percent, like the others
    gpu_hours: float  # GPUs times wall time
    memory: float | None  # MiB, the most that an attempt used
    memory_asked: float | None
    memory_efficiency: float | None
    seconds: float | None  # of the longest attempt
    seconds_asked: float | None
    time_efficiency: float | None


def automatic(run: RunDir, config: Config, known: Submitted) -> Config:
    """The config with what `resources: auto` takes from the run so far; says so in a line."""
    if not is_automatic(config):
        return config
    used = accounting.starts(known.history, programs.PATIENCE)
    config = taken(config, proposal(attempts(run, known, used)))
    asked = [f"{stage} {' '.join(of.values())}" for stage, of in config.resources[AUTO].items()]
    print(f"resources: auto takes {', '.join(asked) or 'nothing yet, as no task is done'}")
    return config


def attempts(run: RunDir, known: Submitted, starts: Mapping[str, Sequence[Start]]) -> list[Attempt]:
    """All attempts at tasks of a run that are known."""
    records = task_log.attempts(run)
    done = {record["id"]: record["started"] for record in records if record["error"] is None}
    return [*joined(records, known.history, starts), *_too_little(run, known, done)]


def joined(
    records: Sequence[Mapping[str, Any]],
    submissions: Sequence[Submission],
    starts: Mapping[str, Sequence[Start]],
) -> list[Attempt]:
    """The attempts, by the records of tasks and by the starts of their jobs.

    What a start of a job took beyond what its tasks recorded is of the first task that left no
    record, or else of the last one.
    """
    left: dict[str | None, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        left[record["job"]].append(record)
    found = []
    for s in reversed(submissions):
        jobs: dict[str, list[str]] = defaultdict(list)
        for task in s.elements:
            if job := s.job_of(task):
                jobs[job].append(task)
        for job, tasks in jobs.items():
            since = s.when - SKEW  # ids begin anew one day
            own = [r for r in left[job] if r["started"] >= since]
            left[job] = [r for r in left[job] if r["started"] < since]
            for start in starts.get(job, ()):
                within = [r for r in own if start.holds(r["started"], SKEW)]
                own = [r for r in own if r not in within]
                if start.when >= since:
                    found += _started(s, start, tasks, [_recorded(r, s) for r in within])
            found += [_recorded(record, s) for record in own]
    return found + [_recorded(record) for each in left.values() for record in each]


def _recorded(record: Mapping[str, Any], submission: Submission | None = None) -> Attempt:
    return Attempt(
        task=record["id"],
        stage=record["stage"],
        done=record["error"] is None,
        seconds=record["seconds"],
        cpu=record["cpu"],
        peak=record["peak"],
        cpus=record["cpus"] if record["job"] else None,  # else the machine's, which all share
        gpus=record["gpus"] or 0,
        memory=submission.memory if submission else None,
        time=submission.time if submission else None,
        lack="time" if STALLED in (record["error"] or "") else None,
    )


def _started(s: Submission, start: Start, tasks: list[str], told: list[Attempt]) -> list[Attempt]:
    """The attempts of one start of a job, of which some were told by records."""
    well = start.state == "COMPLETED"
    silent = [task for task in tasks if task not in {attempt.task for attempt in told}]
    if told and (well or not silent or not told[-1].done):
        *told, last = told
    else:
        task = (silent or tasks)[0]
        last = Attempt(task, stage_of(task), done=well)
    known = max((attempt.peak or 0 for attempt in told), default=0)
    lacks: dict[str, Lack] = {"OUT_OF_MEMORY": "memory", "TIMEOUT": "time"}
    last = replace(
        last,
        seconds=max(last.seconds or 0.0, start.seconds - sum(a.seconds or 0.0 for a in told)),
        cpu=max(last.cpu or 0.0, start.cpu - sum(a.cpu or 0.0 for a in told)),
        peak=max(last.peak or 0, most if (most := start.peak or 0) > known else 0) or None,
        lack=last.lack or lacks.get(start.state),
    )
    memory, time = s.memory or start.memory, s.time or start.time
    return [
        replace(each, cpus=start.cpus, gpus=start.gpus, memory=memory, time=time)
        for each in (*told, last)
    ]


def stage_of(task: str) -> str:
    """The stage by a task's id."""
    found = STAGE.search(task)
    return found[1] if found else task


def _too_little(run: RunDir, known: Submitted, done: Mapping[str, float]) -> Iterator[Attempt]:
    """What was asked for, and was too little, by the journal, the scheduler and the tasks' logs.

    Of these attempts nothing else is known: they count for the next request alone.
    """
    later: dict[str, Submission] = {}
    for s in (s for s in reversed(known.history) if s.job):
        for task, index in s.elements.items():
            lack: Lack | None = None
            own, after = s.own(task), later.get(task)
            element = known.elements.get((s.token, index))
            if after is not None:
                if after.asked == own.asked and (after.memory or 0) > (own.memory or 0):
                    lack = "memory"
                elif after.asked_time == own.asked_time and (after.time or 0) > (own.time or 0):
                    lack = "time"
            elif (
                done.get(task, 0.0) < s.when - SKEW
                and done.keys() >= {*s.earlier(task)}  # else it never began
                and not (element and element.alive)
            ):
                log = task_log.last_attempt(run, task, s.when)
                if scheduler.ran_out_of_memory(element, log):
                    lack = "memory"
                elif element and element.state == "TIMEOUT":
                    lack = "time"
            later[task] = own
            if lack:
                yield Attempt(task, stage_of(task), memory=s.memory, time=s.time, lack=lack)


def by_stage(attempts: Iterable[Attempt]) -> list[StageCost]:
    """What each stage cost, in the order of the stages."""
    found: dict[str, list[Attempt]] = {stage: [] for stage in STAGES}
    for attempt in attempts:
        if attempt.seconds is not None:
            found.setdefault(attempt.stage, []).append(attempt)
    return [_cost(each) for each in found.values() if each]


def _cost(attempts: list[Attempt]) -> StageCost:
    def most(values: Iterable[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    cpu = [a.cpu for a in attempts if a.cpu is not None]
    had = [(a.cpu, a.cpus * (a.seconds or 0.0)) for a in attempts if a.cpus]
    both = [(used, asked) for used, asked in had if used is not None]
    memory, memory_asked = (most(getattr(a, key) for a in attempts) for key in ("peak", "memory"))
    seconds, minutes = (most(getattr(a, key) for a in attempts) for key in ("seconds", "time"))
    seconds_asked = None if minutes is None else 60 * minutes
    return StageCost(
        stage=attempts[0].stage,
        tasks=len({a.task for a in attempts}),
        attempts=len(attempts),
        cpu_hours=sum(cpu) / 3600 if cpu else None,
        cpu_hours_asked=sum(asked for _, asked in had) / 3600 if had else None,
        cpu_efficiency=_percent(sum(used for used, _ in both), sum(asked for _, asked in both)),
        gpu_hours=sum(a.gpus * (a.seconds or 0.0) for a in attempts) / 3600,
        memory=memory,
        memory_asked=memory_asked,
        memory_efficiency=_percent(memory, memory_asked),
        seconds=seconds,
        seconds_asked=seconds_asked,
        time_efficiency=_percent(seconds, seconds_asked),
    )


def _percent(used: float | None, asked: float | None) -> float | None:
    return 100 * used / asked if asked and used is not None else None


def proposal(attempts: Iterable[Attempt]) -> Proposal:
    """The memory and time to ask for next time, of stages of which a task was done.

    Memory is 1.2 times the largest used and 64 MiB, up to the next 100 MiB; time is 1.5 times the
    longest, 5 minutes at least. Each is no less than an attempt had for which it was too little,
    and twice that where the task was never done.
    """
    found: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        found[attempt.stage].append(attempt)
    asked: Proposal = {}
    for stage in STAGES:
        each = found[stage]
        peaks = [a.peak for a in each if a.peak]
        if not peaks or not any(a.done for a in each):
            continue
        times, more, step = MEMORY
        memory = max(times * max(peaks) + more, _enough(each, "memory"))
        longer, least = TIME
        longest = max(a.seconds or 0.0 for a in each) / 60
        minutes = max(longer * longest, least, _enough(each, "time"))
        asked[stage] = {
            "memory": f"{step * math.ceil(memory / step)}M",
            "time": f"{math.ceil(minutes)}min",
        }
    return asked


def _enough(attempts: list[Attempt], what: Lack) -> int:
    """What is not too little, by attempts that had too little of it; 0 where there are none."""
    done = {attempt.task for attempt in attempts if attempt.done}
    return max(
        (
            (getattr(attempt, what) or 0) * (1 if attempt.task in done else AGAIN)
            for attempt in attempts
            if attempt.lack == what
        ),
        default=0,
    )
