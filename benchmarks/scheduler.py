"""When the tasks of a run begin and end on a number of workers, from recorded task times.

List scheduling: a worker that is free takes the first task, in their order, whose needs have ended
(Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17(2), 1969).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from skerch.jobs.pipeline import Task

Spans = dict[str, tuple[float, float]]  # when each task begins and ends, in seconds, by id


@dataclass(frozen=True)
class Work:
    """What a task takes."""

    start: float  # core seconds that come first: workers on the same machine compete for cores
    rest: float  # seconds after them, for which they do not compete


@dataclass(frozen=True)
class Workers:
    """Who does the tasks, and what their scheduler adds."""

    count: int
    cores: float = math.inf  # that the start of tasks has, if all workers are on one machine
    refill: float = 0.0  # seconds from a task's end until its worker can begin another
    chain: float = 0.0  # seconds from the end of the last need until a task can begin


@dataclass(frozen=True)
class Recording:
    """What the run of one worker tells of any number."""

    work: Mapping[str, Work]  # by task id
    start: float  # of a measurement task
    refill: float
    chain: float

    def workers(self, count: int, cores: float = math.inf) -> Workers:
        """As many workers, under the scheduler of the recorded run."""
        return Workers(count, cores=cores, refill=self.refill, chain=self.chain)


def replay(tasks: Sequence[Task], work: Mapping[str, Work], workers: Workers) -> Spans:
    """When the tasks begin and end; all of what they need must be among them, or done before."""
    known = {task.id for task in tasks}
    needs = {task.id: known & {*task.needs} for task in tasks}
    ready = {task_id: 0.0 for task_id, of_task in needs.items() if not of_task}  # from when on
    free = [0.0] * workers.count  # from when on, a worker
    starting: dict[str, float] = {}  # tasks that start, and the core seconds that they still need
    running: dict[str, float] = {}  # tasks that have started, and when they end
    begins, ends = dict[str, float](), dict[str, float]()
    now = 0.0
    while len(ends) < len(tasks):
        for task_id in [task_id for task_id in needs if ready.get(task_id, math.inf) <= now]:
            if not free or min(free) > now:
                break
            free.remove(min(free))
            del ready[task_id]
            begins[task_id], starting[task_id] = now, work[task_id].start
        share = min(1.0, workers.cores / max(1, len(starting)))
        started = {task_id: now + left / share for task_id, left in starting.items()}
        waits = [moment for moment in (*free, *ready.values()) if moment > now]
        then = min([*started.values(), *running.values(), *waits])
        for task_id, moment in started.items():
            starting[task_id] -= (then - now) * share
            if moment == then:
                del starting[task_id]
                running[task_id] = then + work[task_id].rest
        now = then
        for task_id in [task_id for task_id, end in running.items() if end == now]:
            del running[task_id]
            ends[task_id] = now
            free.append(now + workers.refill)
            for other, of_task in needs.items():
                if task_id in of_task:
                    of_task.remove(task_id)
                    if not of_task:
                        ready[other] = now + workers.chain
    return {task_id: (begins[task_id], end) for task_id, end in ends.items()}


def makespan(spans: Spans) -> float:
    """Seconds from the first begin to the last end."""
    return max(end for _, end in spans.values()) - min(begin for begin, _ in spans.values())


def spans(task_records: Path) -> Spans:
    """When the tasks of a run began and ended, from its `logs/tasks.jsonl`."""
    lines = task_records.read_text().splitlines()
    records = [json.loads(line) for line in lines if line]
    return {r["id"]: (r["started"], r["started"] + r["seconds"]) for r in records}


def recording(tasks: Sequence[Task], recorded: Spans, asleep: float = 0.0) -> Recording:
    """Task times and the scheduler's delays, from the spans of a run of one worker.

    Measurement tasks have a start, `asleep` for some seconds of it, and equal blocks: the
    least-squares line of their seconds over their numbers of blocks, which must not be all
    the same.
    """
    by_id = {task.id: task for task in tasks}
    seconds = {task_id: end - begin for task_id, (begin, end) in recorded.items()}
    measuring = [task_id for task_id in recorded if by_id[task_id].stage == "measure"]
    blocks = [len(by_id[task_id].outputs) for task_id in measuring]
    line = statistics.linear_regression(blocks, [seconds[task_id] for task_id in measuring])
    start = max(0.0, line.intercept - asleep)
    work = {
        task_id: Work(min(start, total), max(0.0, total - start))
        if task_id in measuring
        else Work(0.0, total)
        for task_id, total in seconds.items()
    }
    delays: dict[bool, list[float]] = {True: [], False: []}
    for (a, (_, end)), (b, (begin, _)) in pairwise(
        sorted(recorded.items(), key=lambda pair: pair[1])
    ):
        delays[a in by_id[b].needs].append(max(0.0, begin - end))
    return Recording(work, start, statistics.fmean(delays[False]), statistics.fmean(delays[True]))
