"""What failed, how, and whether it is worth another attempt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from skerch.jobs import pipeline
from skerch.jobs.config.resources import Resources
from skerch.jobs.launchers.slurm.observed import Submitted, TaskState, kind
from skerch.jobs.launchers.slurm.raised import SubmitError, next_request
from skerch.jobs.pipeline import Task
from skerch.jobs.pipeline.ranges import counted
from skerch.jobs.run_dir import RunDir

# Ends that say nothing of the task: they are tried again as long as there are attempts.
OUTER = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED", "TIMEOUT", "lost")


@dataclass(frozen=True)
class Failures:
    """Tasks that have failed or are lost, by id; not those that only needed one of them."""

    again: dict[str, TaskState] = field(default_factory=dict)  # those that may do better
    died: dict[str, str] = field(default_factory=dict)  # of these, on which node, if it was that
    hopeless: dict[str, str] = field(default_factory=dict)  # why, of those that will not

    def alike(self) -> Iterator[list[TaskState]]:
        """Those that may do better, in groups that failed the same way."""
        for how in dict.fromkeys(map(kind, self.again.values())):
            yield [state for state in self.again.values() if kind(state) == how]


NONE = Failures()


def failures(
    run: RunDir, heals: int, tasks: list[Task], known: Submitted, wanted: dict[str, Resources]
) -> Failures:
    """What has failed of a run's tasks that are missing.

    A task is hopeless that failed twice the same way since its user submitted it, or was healed
    `heals` times, that may not have the memory or time that it lacks, and that somebody cancelled.
    """
    found = Failures()
    missing = {task.id: task for task in pipeline.missing(tasks)}
    for task in missing.values():
        if any(need in missing for need in task.needs):
            continue
        state = known.state(run, task, missing)
        if state.state not in ("failed", "lost") or task.id not in known.latest:
            continue
        if state.reason == "CANCELLED" and known.taken_down(task.id):
            continue
        reason = hopeless(run, heals, task, missing, known, wanted[task.stage], state)
        if reason is not None:
            found.hopeless[task.id] = reason
            continue
        found.again[task.id] = state
        if state.node and (state.cause == "killed" or state.reason in OUTER):
            found.died[task.id] = state.node
    return found


def hopeless(
    run: RunDir,
    heals: int,
    task: Task,
    missing: dict[str, Task],
    known: Submitted,
    wanted: Resources,
    state: TaskState,
) -> str | None:
    """Why the last job of a chain does not submit a task again that failed; None: it does."""
    if state.reason == "CANCELLED":
        return None if known.taken_down(task.id) else f"{task.id} was cancelled"
    healed = known.healed(task.id)
    if healed >= heals:
        again = f", and was submitted again {counted(healed, 'time')}" if healed else ""
        return f"{task.id} failed{again}: {state.reason}"
    if known.lacked(run, task, missing):
        try:
            next_request(run, [task], missing, known, wanted)
        except SubmitError as error:
            return str(error).rstrip(".")
        return None
    same = known.latest[task.id].because.get(task.id) == kind(state)
    if same and state.state != "lost" and state.reason not in OUTER:
        return f"{task.id} failed twice the same way: {state.reason}"
    return None


def needing(tasks: Iterable[Task], failed: Iterable[str]) -> set[str]:
    """These tasks, and all that need them."""
    found = set(failed)
    for task in tasks:  # each after those that it needs
        if found & set(task.needs):
            found.add(task.id)
    return found
