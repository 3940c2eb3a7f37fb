"""When the tasks of a run begin and end on a number of workers, from recorded task times.

List scheduling: a worker that is free takes the first task, in their order, whose needs have ended
(Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17(2), 1969).
"""

from __future__ import annotations

import heapq
import json
import math
import statistics
from collections import Counter
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
    throttle: int | None = None  # tasks of one array at once
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
    order = {task.id: number for number, task in enumerate(tasks)}
    needs = {task.id: order.keys() & set(task.needs) for task in tasks}
    consumers = {task.id: [other for other in order if task.id in needs[other]] for task in tasks}
    ready = [task_id for task_id in order if not needs[task_id]]
    starting: dict[str, float] = {}  # tasks that start, and the core seconds that they still need
    events: list[tuple[float, int, str, str]] = []
    running: Counter[str | None] = Counter()
    begins, ends = dict[str, float](), dict[str, float]()
    free, now = workers.count, 0.0

    def later(seconds: float, what: str, task_id: str) -> None:
        heapq.heappush(events, (now + seconds, order[task_id], what, task_id))

    while len(ends) < len(tasks):
        if not events or events[0][0] > now:
            held = []
            for task_id in ready:
                array = tasks[order[task_id]].array
                if free and (array is None or running[array] != workers.throttle):
                    begins[task_id], starting[task_id] = now, work[task_id].start
                    running[array] += 1
                    free -= 1
                else:
                    held.append(task_id)
            ready = held
        share = min(1.0, workers.cores / max(1, len(starting)))
        first = min(starting, key=starting.__getitem__, default=None)
        if first is not None and (not events or now + starting[first] / share <= events[0][0]):
            passed = starting.pop(first) / share
            what, task_id = "started", first
        else:
            moment, _, what, task_id = heapq.heappop(events)
            passed = moment - now
        now += passed
        starting = {other: left - passed * share for other, left in starting.items()}
        if what == "started":
            later(work[task_id].rest, "end", task_id)
        elif what == "free":
            free += 1
        elif what == "ready":
            ready = sorted([*ready, task_id], key=order.__getitem__)
        else:
            ends[task_id] = now
            running[tasks[order[task_id]].array] -= 1
            later(workers.refill, "free", task_id)
            for consumer in consumers[task_id]:
                needs[consumer].remove(task_id)
                if not needs[consumer]:
                    later(workers.chain, "ready", consumer)
    return {task_id: (begins[task_id], ends[task_id]) for task_id in ends}


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
