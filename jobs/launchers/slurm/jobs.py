"""Which jobs of a scheduler complete a run, and what each waits for.

A measurement array is one job, an array of its missing tasks (several, where the scheduler takes
no array of that size); any other task is a job. `fused` joins those that would only wait for each
other. What ends a chain is the job that heals it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from skerch.jobs import pipeline
from skerch.jobs.config import Config
from skerch.jobs.config.resources import Resources, resources
from skerch.jobs.config.stages import REPORT, STAGES
from skerch.jobs.launchers.slurm import scheduler
from skerch.jobs.launchers.slurm.failures import NONE, Failures
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.observed import Submitted, kind
from skerch.jobs.launchers.slurm.raised import Request, next_request
from skerch.jobs.pipeline import Task
from skerch.jobs.run_dir import RunDir, method_name

LEAST_MEMORY, LEAST_MINUTES = 2000, 20  # MiB and time of what helps where they were short
SIZES = {
    *("memory", "memory_limit", "memory_factor", "time", "time_limit", "time_factor"),
    *("grace", "requeues", "throttle"),
}


@dataclass(frozen=True)
class Job:
    """Tasks that are submitted together: one, or several of an array, and what they do first."""

    tasks: list[Task]
    first: int | None  # the number of the task that an array calls 0; None for a task alone
    request: Request
    resources: Resources
    before: tuple[Job, ...] = ()  # a task each, which each element does, one after the other

    @property
    def everything(self) -> list[Task]:
        """All tasks, each after those that it needs."""
        return [task for job in (*self.before, self) for task in job.tasks]

    @property
    def id(self) -> str:
        """The task's id; of an array, what those of its tasks begin with."""
        return self.tasks[0].id if self.first is None else str(self.tasks[0].array)

    @property
    def requeues(self) -> int:
        """How often it may be requeued: as often as the tasks of a chain may, one by one."""
        before = self.before if self.first is None else ()
        return sum(job.resources.requeues for job in (*before, self))

    def submission(
        self,
        run: Path,
        name: str,
        after: Iterable[str],
        failed: Failures = NONE,
    ) -> Submission:
        """As it is written down before the scheduler is asked."""
        ids = [task.id for task in self.everything]
        indices = None if self.first is None else tuple(t.arguments["tasks"][0] for t in self.tasks)
        needs = {
            job.id: [
                job.resources.memory,
                job.request.memory,
                job.resources.minutes,
                job.request.time,
            ]
            for job in (*self.before, self)
        }
        most = [max(n or 0 for n in each) or None for each in zip(*needs.values(), strict=True)]
        asked, memory, asked_time, minutes = most
        return Submission(
            token=scheduler.new_token(run),
            name=name,
            task=self.id,
            indices=indices,
            first=self.first or 0,
            after=tuple(sorted(after)),
            asked=asked,
            memory=memory,
            asked_time=asked_time,
            time=minutes,
            parts=needs if self.before else {},
            cpus=self.resources.cpus,
            gpus=self.resources.gpus,
            because={id: kind(failed.again[id]) for id in ids if id in failed.again},
            died={id: failed.died[id] for id in ids if id in failed.died},
            when=time.time(),
        )


def missing_jobs(
    run: RunDir,
    config: Config,
    known: Submitted,
    wanted: dict[str, Resources],
    leave: Container[str] = (),
) -> tuple[list[Job], list[str], dict[str, str]]:
    """The jobs to submit, the elements to cancel first, and the job ids of live tasks by task id.

    An id ends in `?` where the job may end well no more, as some of its tasks have failed; live
    tasks that wait for such a job never start, and are submitted anew. Tasks of `leave` are not.
    """
    tasks = pipeline.tasks(config)
    missing = {task.id: task for task in pipeline.missing(tasks)}
    failed, stuck = _failed(known, missing.keys())
    live = {
        task: f"{s.job}?" if s.job in failed else str(s.job)
        for task, s in known.live.items()
        if (element := known.element_in(s, task)) and element.job not in stuck
    }
    groups: dict[tuple[str, int | None], list[Task]] = defaultdict(list)
    size = scheduler.array_size() if any(t.array for t in missing.values()) else 1
    for task in missing.values():
        if task.id in live or task.id in leave:
            continue
        first = None
        if task.array is not None:
            first = task.arguments["tasks"][0] // size * size
        groups[task.array or task.id, first].append(task)
    requests = {
        stage: next_request(
            run,
            [t for t in tasks if t.stage == stage and t.id not in leave],
            missing,
            known,
            wanted[stage],
        )
        for stage in dict.fromkeys(group[0].stage for group in groups.values())
    }
    jobs = [
        Job(group, first, requests[group[0].stage], wanted[group[0].stage])
        for (_, first), group in groups.items()
    ]
    return fused(jobs, missing) if config.launcher.fuse else jobs, stuck, live


def in_a_row(config: Config) -> int:
    """How many jobs wait one after the other until all is done, without the training's own."""
    wanted, groups = resources(config), defaultdict[str, list[Task]](list)
    for task in pipeline.tasks(config):
        groups[task.array or task.id].append(task)
    jobs = [
        Job(group, 0 if group[0].array else None, Request(None, None), wanted[group[0].stage])
        for group in groups.values()
    ]
    if config.launcher.fuse:
        jobs = fused(jobs, {task.id for group in groups.values() for task in group})
    waits = {"train": 0}
    for job in jobs:
        needs = {need for task in job.everything for need in task.needs} & waits.keys()
        own = max((waits[need] for need in needs), default=0) + (job.id != "train")
        waits |= dict.fromkeys((task.id for task in job.everything), own)
    return max(waits.values())


def fused(jobs: Sequence[Job], missing: Container[str]) -> list[Job]:
    """Jobs of which those that would only wait for each other are one.

    A job goes on with a task that waits for it alone, if all else that waits for it waits for that
    task, too: with a brief one, or one that resumes, as a time limit may come in its middle. Before
    a long one that does not, there are brief ones alone. What several tasks of an array wait for is
    done by the first of them, if it may be.
    """
    owner = {task.id: number for number, job in enumerate(jobs) for task in job.tasks}
    needs: list[set[int | str]] = []  # the jobs that one waits for, by number; live tasks by id
    above: list[set[int | str]] = []  # and those that these wait for
    found: dict[int, Job] = {}  # by the number of its last one
    parts: dict[int, set[int | str]] = {}
    for job in jobs:
        own = {owner.get(n, n) for task in job.tasks for n in task.needs if n in missing}
        needs.append(own)
        above.append(own.union(*(above[number] for number in own if isinstance(number, int))))
    for number, job in enumerate(jobs):
        found[number], parts[number] = job, {number}
        for last, of in list(parts.items()):
            if not needs[number] & of:
                continue
            waits = {n for n, its in enumerate(needs) if its & of} - of
            alone = all(n == number or number in above[n] for n in waits)
            if alone and needs[number] <= of | above[last]:
                joined = _joined(found[last], job)
                if joined is not None:
                    found[number], parts[number] = joined, of | {number}
                    del found[last], parts[last]
                    break
    return list(found.values())


def _joined(job: Job, then: Job) -> Job | None:
    """A job that goes on with another, unless they must be two."""
    stages, stage = [STAGES[task.stage] for task in job.everything], STAGES[then.tasks[0].stage]
    before = (*job.before, replace(job, first=None, before=()))
    if len(job.tasks) > 1 or not _agree(job.resources, then.resources):
        return None
    if len(then.tasks) > 1:
        return replace(then, before=before) if all(each.once for each in stages) else None
    if stage.brief or stage.resumes or all(each.brief for each in stages):
        return replace(then, first=None, before=before)
    return None


def _agree(one: Resources, other: Resources) -> bool:
    """Whether two ask for the same, though one for more memory or time."""
    sized = [(r.memory is None, r.time is None) for r in (one, other)]
    same = (f.name for f in fields(Resources) if f.name not in SIZES)
    return sized[0] == sized[1] and all(getattr(one, n) == getattr(other, n) for n in same)


def healing_job(config: Config, wanted: dict[str, Resources]) -> Job:
    """What ends a chain, whatever became of it: it submits what is missing, and reports."""
    ask = wanted[REPORT.name]
    task = Task(healing_id(method_name(config)), REPORT.name, {}, (), ())
    memory = ask.memory and max(ask.memory, LEAST_MEMORY)
    minutes = ask.minutes and max(ask.minutes, LEAST_MINUTES)
    return Job([task], None, Request(memory, minutes), ask)


def healing_id(name: str) -> str:
    """The id of the task that ends a chain of a method."""
    return f"{name}.{REPORT.name}"


def last_jobs(config: Config, ids: dict[str, str]) -> list[str]:
    """The jobs of a method's tasks, by task id, that no other one waits for."""
    tasks = [task for task in pipeline.tasks(config) if task.id in ids]
    needed = {need for task in tasks for need in task.needs}
    ends = {ids[task.id] for task in tasks if task.id not in needed}
    return sorted(ends, key=lambda job: (len(job), job))


def _failed(known: Submitted, missing: Container[str]) -> tuple[set[str], list[str]]:
    """The jobs of which a task has failed or is lost, and the elements that never start."""
    failed: set[str] = set()
    stuck: list[str] = []
    for s in known.history:  # each after those that it waits for
        never = bool(failed & set(s.after))
        failed.discard(str(s.job))  # an id that another had before Slurm forgot it
        for task in s.elements:
            element = known.element_in(s, task)
            if element is None:
                ended_well = task not in missing
            elif element.stuck or (never and element.pending):
                stuck.append(element.job)
                ended_well = False
            else:
                ended_well = element.alive or element.state == "COMPLETED"
            if not ended_well:
                failed.add(str(s.job))
    return failed, stuck


def after(job: Job, ids: dict[str, str]) -> set[str]:
    """The ids of the jobs that a job waits for: live ones, and those submitted before it."""
    own = {task.id for task in job.everything}
    needs = {need for task in job.everything for need in task.needs}
    return {ids[need] for need in needs - own if need in ids}
