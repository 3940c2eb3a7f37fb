"""What became of submitted tasks: the journal of submissions joined with the scheduler's word."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from skerch.errors import SkerchError
from skerch.jobs.launchers.slurm import journal, scheduler
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.scheduler import Element
from skerch.jobs.pipeline.ranges import format_ranges
from skerch.jobs.run_dir import RunDir, command

PATIENCE = 2.0  # seconds that the scheduler may take, where one can do without its answer


class LiveJobsError(SkerchError):
    """Jobs of a run that are live where they must not be."""


@dataclass(frozen=True)
class Submitted:
    """All submissions of a run, oldest first, and what the scheduler says of them."""

    history: list[Submission]
    elements: scheduler.Elements

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
