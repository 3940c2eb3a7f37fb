"""What a person sees while tasks run: bars on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from skerch.jobs.pipeline import Task
from skerch.jobs.pipeline.task_log import progress_line

INTERVAL = 5.0  # seconds between two plain lines of one task


class Bars:
    """A bar over all tasks, and one for each running task, with rates and remaining time."""

    def __init__(self, console: Console, total: int):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._all = self._progress.add_task("all tasks", total=total, unit="tasks", rate="")
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def started(self, task: Task) -> None:
        """A task starts."""
        self._bars[task.id] = self._progress.add_task(task.id, total=None, unit="", rate="")

    def progress(self, task: Task, done: int, total: int, unit: str) -> None:
        """A task has done some of its work."""
        bar = self._bars[task.id]
        self._progress.update(bar, completed=done, total=total or None, unit=unit)
        speed = self._progress.tasks[self._progress.task_ids.index(bar)].speed
        self._progress.update(bar, rate=f"{speed:.3g}/s" if speed else "")

    def ended(self, task: Task, error: str | None) -> None:
        """A task is done or failed."""
        if task.id in self._bars:
            self._progress.remove_task(self._bars.pop(task.id))
        if error is not None:
            words = Text.assemble((f"{task.id} failed: ", "red"), error)
            self._progress.console.print(words, soft_wrap=True)
        self._progress.advance(self._all)


class Lines:
    """A plain line when a task ends, and every few seconds while it runs."""

    def __init__(self, total: int):
        self._total = total
        self._ended = 0
        self._times: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, task: Task) -> None:
        """A task starts."""
        now = time.monotonic()
        self._times[task.id] = (now, now)

    def progress(self, task: Task, done: int, total: int, unit: str) -> None:
        """A task has done some of its work."""
        now = time.monotonic()
        first, last = self._times[task.id]
        if done and now - last >= INTERVAL:
            self._times[task.id] = (first, now)
            print(f"  {task.id}: {progress_line(done, total, unit, now - first)}", flush=True)

    def ended(self, task: Task, error: str | None) -> None:
        """A task is done or failed."""
        self._ended += 1
        now = time.monotonic()
        seconds = now - self._times.get(task.id, (now,))[0]
        outcome = "" if error is None else " failed after"
        print(f"[{self._ended}/{self._total}] {task.id}:{outcome} {seconds:.1f} s", flush=True)
        if error is not None:
            print(f"error: {task.id}: {error}", file=sys.stderr, flush=True)


def report(total: int) -> Bars | Lines:
    """The report that fits where the output goes."""
    console = Console()
    return Bars(console, total) if console.is_terminal else Lines(total)
