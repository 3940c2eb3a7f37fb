"""What became of tasks, by the disk, the journal of submissions and the scheduler."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from skerch.errors import SkerchError
from skerch.files import alive
from skerch.jobs.config.stages import STAGES
from skerch.jobs.launchers.slurm import journal, scheduler
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.scheduler import Element
from skerch.jobs.pipeline import Task, task_log
from skerch.jobs.pipeline.ranges import format_ranges
from skerch.jobs.run_dir import RunDir, command

PATIENCE = 2.0  # seconds that the scheduler may take, where one can do without its answer
KILLED = task_log.ending(0, signal.SIGKILL)
STALLED = "time limit to the next"  # in the error of a task that made nothing between two limits
State = Literal["done", "running", "pending", "failed", "lost", "submitted", "missing"]
Cause = Literal["memory", "killed", "time"]  # lack of memory, SIGKILL, lack of time
STATES: tuple[State, ...] = get_args(State)


class LiveJobsError(SkerchError):
    """Jobs of a run that are live where they must not be."""


@dataclass(frozen=True)
class TaskState:
    """What became of a task and its job; `status --json` shows it up to `next`."""

    id: str
    stage: str
    state: State
    reason: str | None
    job: str | None
    node: str | None
    exit_code: str | None  # as sacct writes it
    log: str | None
    last_line: str | None  # of the log
    next: str | None = None  # what to type
    error: str | None = None  # the sentence in the log with which it failed
    cause: Cause | None = None  # of its failure, where that says what to change
    needs: TaskState | None = None  # the task that failed or is lost and so takes it down


@dataclass(frozen=True)
class Submitted:
    """All submissions of a run, oldest first, and what the scheduler says of them."""

    history: list[Submission]
    elements: scheduler.Elements
    silence: str | None = None  # why the scheduler says nothing

    @cached_property
    def latest(self) -> dict[str, Submission]:
        """The last submission of each task that the scheduler took, by task id."""
        return {task: s for s in self.history if s.job for task in s.elements}

    @cached_property
    def live(self) -> dict[str, Submission]:
        """The submission by which a task runs or is to run, for those that do."""
        return {
            task: s
            for s in self.history
            for task, index in s.elements.items()
            if (element := self.elements.get((s.token, index))) and element.alive
        }

    @cached_property
    def strangers(self) -> list[str]:
        """Ids of live jobs of the run that are in no submission, as the journal was damaged."""
        known = {s.token for s in self.history}
        live = {e.job for (token, _), e in self.elements.items() if token not in known and e.alive}
        return sorted({job.partition("_")[0] for job in live}, key=int)

    def element(self, task: str) -> Element | None:
        """What the scheduler says of a task as it was last submitted; None if nothing."""
        s = self.latest.get(task)
        return self.elements.get((s.token, s.elements[task])) if s else None

    def state(self, run: RunDir, task: Task, missing: bool) -> TaskState:
        """One task's state, without `next` and `needs`, which the other tasks decide."""
        submission, element = self.latest.get(task.id), self.element(task.id)
        live = self.live.get(task.id)
        if live is not None:
            element = self.elements[live.token, live.elements[task.id]]
        log, attempt = run.task_log(task.id), ""
        if missing:
            attempt = task_log.last_attempt(run, task.id, submission.when if submission else 0.0)
        error = task_log.error(attempt)
        state: State = "missing"
        reason: str | None = None
        cause: Cause | None = None
        if not missing:
            state = "done"
        elif live is not None and element is not None:
            state = "pending" if element.pending else "running"
            reason = element.reason or element.node
        elif scheduler.ran_out_of_memory(element, attempt):
            state, cause = "failed", "memory"
            reason = "out of memory" + (f": {error}" if error else "")
        elif element is not None and element.state != "COMPLETED":
            state, reason = "failed", error or element.outcome
            if not error and element.state == "TIMEOUT" and not STAGES[task.stage].resumes:
                cause = "time"
        elif error:
            state, reason = "failed", error
        elif submission and self.silence:
            state = "submitted"
        elif submission:
            state, reason = "lost", "the scheduler knows it no more, and it left no result"
            if element is not None:
                reason = "it ended well, but its result is not to be seen here"
        elif (process := task_log.process(attempt)) and alive(process):
            state, reason = "running", f"process {process} of this machine"
        elif process:
            state, reason = "failed", f"its process {process} was killed or stopped, by "
            reason += "someone or for lack of memory"
        if cause is None and reason:
            cause = "killed" if KILLED in reason else "time" if STALLED in reason else None
        job = submission.job_of(task.id) if submission else None
        lines = [
            line for line in attempt.splitlines() if line.strip() and not scheduler.ECHO.match(line)
        ]
        return TaskState(
            id=task.id,
            stage=task.stage,
            state=state,
            reason=reason,
            job=element.job if element else job,
            node=element.node if element else None,
            exit_code=element.exit_code if element and element.ended else None,
            log=str(log) if log.exists() else None,
            last_line=lines[-1] if lines else None,
            error=error,
            cause=cause,
        )


def observe(run: RunDir, patience: float, *, unasked: bool = False) -> Submitted:
    """Ask the scheduler; ids of jobs whose submitting process was killed are found, too.

    A run of which nothing was submitted, by its directory, needs no scheduler; `unasked` it is
    asked all the same, as jobs may live whose run directory was removed.

    Raises SlurmError where it does not answer within `patience` seconds.
    """
    history = journal.submissions(run)
    elements = {}
    if unasked or run.jobs.parent.exists():
        elements = scheduler.elements(run.path, history, patience)
    return Submitted([_identified(s, elements) for s in history], elements)


def refuse_live(run: RunDir) -> None:
    """Refuse to do here what a scheduler's jobs are at; its silence is no hindrance."""
    known = Submitted([], {})
    with suppress(SkerchError):  # two attempts at one task are harmless
        known = observe(run, PATIENCE, unasked=True)
    live = {str(s.job) for s in known.live.values()} | set(known.strangers)
    if jobs := sorted(live, key=int):
        what, are, them = ("Job", "is", "it") if len(jobs) == 1 else ("Jobs", "are", "them")
        raise LiveJobsError(
            f"{what} {format_ranges(map(int, jobs))} of {run.path} {are} live on the cluster; wait "
            f"for {them}, or cancel {them}: {command('cancel', run.path)}."
        )


def _identified(submission: Submission, elements: scheduler.Elements) -> Submission:
    """A submission with its job id, where the scheduler knows it."""
    if submission.job is not None:
        return submission
    for index in submission.elements.values():
        if (element := elements.get((submission.token, index))) is not None:
            return replace(submission, job=element.job.partition("_")[0])
    return submission
