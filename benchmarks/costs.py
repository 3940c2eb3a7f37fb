"""What the scheduler's model needs of what stages cost."""

from __future__ import annotations

from scheduler import Work

from skerch.jobs.commands.costs import Costs, seconds
from skerch.jobs.pipeline import Task


def work(task: Task, of_task: Costs, start: float) -> Work:
    """The work of a task that costs this, besides its start."""
    return Work(start, seconds(task, of_task))
