"""Jobs on their way to Slurm, one after the other, and the job that ends their chain.

The last job is the second to be submitted, and is told what to wait for at the end: so what cannot
be submitted now is left to it, be it that Slurm has no room, is busy, or that this process is
killed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from skerch.jobs.config import Config
from skerch.jobs.config.resources import Resources
from skerch.jobs.launchers.slurm import facts, journal, scheduler, script
from skerch.jobs.launchers.slurm.failures import NONE, Failures
from skerch.jobs.launchers.slurm.jobs import Job, after, healing_id, healing_job, last_jobs
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.observed import Submitted
from skerch.jobs.launchers.slurm.programs import BusyError, FullError, SlurmError
from skerch.jobs.pipeline.ranges import format_ranges
from skerch.jobs.run_dir import RunDir, method_name

NO_NODES = "node configuration is not available"


@dataclass
class Chain:
    """What is submitted of a chain, and what is left."""

    run: RunDir
    config: Config
    lock: int  # the descriptor of the run's lock
    wanted: dict[str, Resources]
    all_nodes: dict[str, Resources]  # as `wanted`, without the nodes that are left out
    known: Submitted
    ids: dict[str, str]  # the jobs of live tasks and of those that are submitted, by task id
    failed: Failures = NONE  # what is done again
    submitted: list[Job] = field(default_factory=list)
    left: list[Job] = field(default_factory=list)
    full: SlurmError | None = None  # why Slurm takes no more
    refused: SlurmError | None = None  # the first refusal of one job

    def __post_init__(self) -> None:
        name = healing_id(method_name(self.config))
        last = self.known.live.get(name)
        waits = last is not None and self.known.elements[last.token, None].pending
        self.last = last if waits else None  # the job that ends the chain

    def submit(self, jobs: Iterable[Job], first: set[str]) -> None:
        """Submit jobs, each after those that it needs, or else after the `first`.

        An array is submitted in parts where room is short.
        """
        waiting = deque(jobs)
        while waiting:
            job = waiting.popleft()
            absent = {task.id for other in self.left for task in other.everything}
            if self.full or any(absent & set(task.needs) for task in job.everything):
                self.left.append(job)
                continue
            try:
                given = self._give(job, after(job, self.ids) or first)
            except FullError as error:
                if len(job.tasks) > 1:
                    half = len(job.tasks) // 2
                    waiting.appendleft(replace(job, tasks=job.tasks[half:]))
                    waiting.appendleft(replace(job, tasks=job.tasks[:half]))
                    continue
                self.full = error
                self.left.append(job)
            except BusyError as error:
                self.full = error
                self.left.append(job)
            except SlurmError as error:
                self.refused = self.refused or error
                self.left.append(job)
            else:
                self.submitted.append(job)
                self.ids |= dict.fromkeys(given.elements, str(given.job))
                if self.last is None and not self.refused:
                    self._end([str(given.job)])
        self._end(last_jobs(self.run.grown(self.config), self.ids))

    def _end(self, jobs: list[str]) -> None:
        """See that a job waits for the end of these: the one that ends the chain."""
        if not jobs:
            return
        if self.last is None:
            last, needs = healing_job(self.config, self.wanted), {f"{j.rstrip('?')}?" for j in jobs}
            try:
                self.last = self._give(last, needs)
            except (FullError, BusyError):  # who comes to the end sees that there is none
                pass
            except SlurmError as error:
                self.refused = self.refused or error
        elif (wanted := tuple(f"{job.rstrip('?')}?" for job in jobs)) != self.last.after:
            assert self.last.job is not None
            with suppress(SlurmError):  # it begins too early then, and submits its like
                scheduler.depend(self.last.job, [job.rstrip("?") for job in jobs])
                self.last = replace(self.last, after=wanted)
                journal.record(self.run, self.last)

    def _give(self, job: Job, needs: Iterable[str]) -> Submission:
        """Submit a job; where no node has what was added to its request, as it can be had."""
        try:
            return self._ask(job, needs)
        except SlurmError as error:
            nearest = job
            if "Memory specification" in str(error):
                nearest = _of_a_node(job)
            elif NO_NODES in str(error):
                nearest = replace(job, resources=self.all_nodes[job.tasks[0].stage])
            if nearest == job:
                raise
        return self._ask(nearest, needs)

    def _ask(self, job: Job, needs: Iterable[str]) -> Submission:
        name = method_name(self.config)
        submission = job.submission(self.run.path, name, needs, self.failed)
        text = job_script(self.run, job, submission)
        journal.record(self.run, submission)
        id = scheduler.submit(text, self.lock, self.run.path, submission)
        submission = replace(submission, job=id)
        journal.record(self.run, submission)
        print(line(submission), flush=True)
        return submission


def _of_a_node(job: Job) -> Job:
    """A job with raised memory that asks for no more than the largest node of its partition has."""
    most = facts.most_memory(job.resources.partition)
    request, asked = job.request, job.resources.memory
    if request.memory and asked and asked <= most < request.memory:
        request = replace(request, memory=most)
    return replace(job, request=request, before=tuple(map(_of_a_node, job.before)))


def job_script(run: RunDir, job: Job, submission: Submission) -> str:
    """The script of a job."""
    log, before = run.task_log(submission.task), [run.task_log(id) for id in submission.before]
    asked = replace(job.resources, requeues=job.requeues)
    return script.script(submission, asked, run.path, log, before)


def line(submission: Submission) -> str:
    """A submission in one line."""
    tasks = "" if submission.indices is None else f" [{format_ranges(submission.indices)}]"
    ids = sorted(submission.after, key=lambda job: (len(job.rstrip("?")), job))
    jobs = [f"{j[:-1]} (however that ends)" if j[-1] == "?" else j for j in ids]
    if submission.task == healing_id(submission.name):
        jobs = [", ".join(id.rstrip("?") for id in ids) + " (however they end)"]
    after = f", after {', '.join(jobs)}" if submission.after else ""
    hessian = re.match(r".*\.step-\d+-[^.]*\.", submission.task)
    before = [id.removeprefix(hessian[0] if hessian else "") for id in submission.before]
    first = f" (first {', '.join(before)})" if before else ""
    return f"job {submission.job}: {submission.task}{tasks}{first}{after}"
