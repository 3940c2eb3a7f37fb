"""What became of tasks, by the disk, the journal of submissions and the scheduler."""

from __future__ import annotations

import re
import signal
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
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


def kind(state: TaskState) -> str:
    """How a task failed, but for figures: equal where it failed the same way."""
    return state.cause or re.sub(r"\d+", "#", state.reason or state.state)


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
            for task in s.elements
            if (element := self.element_in(s, task)) and element.alive
        }

    @cached_property
    def heard_of(self) -> set[str]:
        """The tokens of the jobs of which the scheduler says something."""
        return {token for token, _ in self.elements}

    @cached_property
    def strangers(self) -> list[str]:
        """Ids of live jobs of the run that are in no submission, as the journal was damaged."""
        known = {s.token for s in self.history}
        live = {e.job for (token, _), e in self.elements.items() if token not in known and e.alive}
        return sorted({job.partition("_")[0] for job in live}, key=int)

    def element(self, task: str) -> Element | None:
        """What the scheduler says of a task as it was last submitted; None if nothing."""
        s = self.latest.get(task)
        return self.element_in(s, task) if s else None

    def healed(self, task: str) -> int:
        """How often a task that failed was submitted again since its user did so."""
        submissions = [s for s in self.history if s.job and task in s.elements]
        return len(list(takewhile(lambda s: task in s.because, reversed(submissions))))

    def taken_down(self, task: str) -> bool:
        """Whether a job that a task's waited for did not end well, so that it was cancelled."""
        jobs = self.latest[task].after if task in self.latest else ()
        return any(
            e.ended and e.state != "COMPLETED"
            for e in self.elements.values()
            if e.job.partition("_")[0] in jobs
        )

    def element_in(self, s: Submission, task: str) -> Element | None:
        """What the scheduler says of a submission's task; of several elements, one that lives."""
        found = [self.elements.get((s.token, index)) for index in s.places(task)]
        known = [element for element in found if element]
        return max(known, key=lambda e: (e.alive, not e.pending), default=None)

    def reached(self, task: str, missing: Container[str]) -> bool:
        """Whether the last job of a task came to it: nothing that it does before is missing."""
        s = self.latest.get(task)
        return s is None or not any(earlier in missing for earlier in s.earlier(task))

    def lacked(
        self, run: RunDir, task: Task, missing: Container[str]
    ) -> Literal["memory", "time"] | None:
        """What was too little for a task that failed; killed twice, it was memory."""
        state = self.state(run, task, missing)
        if state.state != "failed" or state.cause is None:
            return None
        if state.cause == "killed":
            before = self.latest[task.id].because.get(task.id) if task.id in self.latest else None
            return "memory" if before == kind(state) else None
        return state.cause

    def state(self, run: RunDir, task: Task, ids: Container[str]) -> TaskState:
        """One task's state, without `next` and `needs`, which the other tasks decide.

        `ids` are those of the missing tasks.
        """
        missing, reached = task.id in ids, self.reached(task.id, ids)
        submission, element = self.latest.get(task.id), self.element(task.id)
        live = self.live.get(task.id)
        if live is not None:
            element = self.element_in(live, task.id)
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
            state = "pending" if element.pending or not reached else "running"
            reason = element.reason or (element.node if reached else "its turn within its job")
        elif reached and scheduler.ran_out_of_memory(element, attempt):
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
        elif submission and element is None and not attempt and submission.token in self.heard_of:
            # Slurm drops an element of an array that is cancelled while it waits.
            state, reason = "failed", "CANCELLED"
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
            exit_code=element.exit_code if element and element.ended and reached else None,
            log=str(log) if log.exists() else None,
            last_line=lines[-1] if lines else None,
            error=error,
            cause=cause if reached else None,
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


def observe_all(runs: Sequence[RunDir], patience: float) -> list[Submitted]:
    """As `observe` of each run, and the scheduler is asked once; its silence stands in each."""
    histories = [journal.submissions(run) for run in runs]
    asked = [run.jobs.parent.exists() for run in runs]
    said = None
    if any(asked):
        said = scheduler.ask([s.job for each in histories for s in each if s.job], patience)
    found = []
    for run, history, is_asked in zip(runs, histories, asked, strict=True):
        elements, silence = {}, None
        if is_asked:
            try:
                elements = scheduler.elements(run.path, history, patience, said)
            except SkerchError as error:
                silence = str(error)
        found.append(Submitted([_identified(s, elements) for s in history], elements, silence))
    return found


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
        element = elements.get((submission.token, index))
        if element and (element.node or element.state != "FAILED"):  # such a one was refused
            return replace(submission, job=element.job.partition("_")[0])
    return submission
