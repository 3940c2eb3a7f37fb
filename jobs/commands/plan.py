"""What a run would take, from the config and N alone; with products measured here, how long."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from resource import RUSAGE_SELF, getrusage
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from skerch.jobs import pipeline
from skerch.jobs.commands import part
from skerch.jobs.config import Config, checkpoints
from skerch.jobs.config.resources import resources
from skerch.jobs.launchers.preflight import count_parameters
from skerch.jobs.pipeline import Task, blocks
from skerch.jobs.run_dir import RunDir

Row = tuple[str, str, str]  # what it is, of one Hessian, in all


@dataclass(frozen=True)
class Plan:
    """What a method says of a run."""

    work: Sequence[Row]  # products, and tasks that compute them
    rest: Sequence[Row]  # disk and times
    notes: Sequence[str] = ()
    tables: Sequence[Table] = field(default_factory=list)


class Planning(Protocol):
    """What the module `plan` of a method's family has."""

    def calibrate(self, config: Config) -> tuple[Any, float | None]:
        """How fast work is here, and the seconds of a block or part, where there are such."""

    def plan(self, config: Config, N: int, tasks: list[Task], pace: Any) -> Plan:
        """What the tasks of all Hessians take; with a pace also the time."""


def print_plan(config: Config, calibrate: bool = False) -> None:
    """Products, tasks, files, disk and memory of one Hessian and of the whole run.

    With `calibrate` also the time, from products that are timed here.
    """
    N, hessians = count_parameters(config), count_hessians(config)
    own: Planning = part.of(config, "plan")
    pace, block = own.calibrate(config) if calibrate else (None, None)
    if block is not None and config.launcher.blocks_per_task == "auto":
        blocks.keep_calibrated(config, block)
    config, why = blocks.numbered(config, queued=config.cluster is not None)
    tasks = pipeline.tasks(config)
    found = own.plan(config, N, tasks[1:], pace)
    table = Table(title=f"{N:,} parameters, {hessians} Hessians")
    for heading in ("", "each", "in all"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in (*found.work, *_tasks(config, tasks), *found.rest):
        table.add_row(*row)
    output = Console()
    output.print(table)
    for each in found.tables:
        output.print(each)
    notes = list(found.notes)
    if any(task.array for task in tasks):
        notes.append(f"blocks   {config.launcher.blocks} a task: {why}.")
    for note in (*notes, *checkpoints.listing(config.training)):
        output.print(note, markup=False, highlight=False, soft_wrap=True)


def _tasks(config: Config, tasks: list[Task]) -> Iterator[Row]:
    """How many tasks and files there are, and how many are done."""
    hessians = count_hessians(config)
    yield "tasks, and the training", f"{(len(tasks) - 1) // hessians:,}", f"{len(tasks):,}"
    if RunDir(config.run_dir).config.exists():
        needless = "" if all(task.outputs for task in tasks) else ", or not needed"
        done = len(tasks) - len(pipeline.missing(tasks))
        yield f"tasks, already done{needless}", "", f"{done:,}"
    files = sum(len(task.outputs) for task in tasks[1:])
    yield "files", f"{round(files / hessians):,}", f"{files:,}"


def count_hessians(config: Config) -> int:
    """How many Hessians a config asks for."""
    return len(config.training.record_steps) * len(config.hessian.splits)


def python_memory() -> int:
    """The bytes that Python with PyTorch takes, as this process."""
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_warnings(config: Config, needs: Mapping[str, int]) -> Iterator[str]:
    """A line on each stage that asks a cluster for less than it needs besides Python."""
    python, stages = python_memory(), {task.stage for task in pipeline.tasks(config)}
    for stage, wanted in resources(config).items():
        if stage not in stages:
            continue
        needed = python + needs.get(stage, 0)
        if wanted.memory and not wanted.gpus and wanted.memory * 2**20 < needed:
            yield (
                f"warning  resources.{stage}.memory is {wanted.memory}M, which is too little "
                f"here; give it {math.ceil(needed / 2**20)}M or more."
            )


def duration(seconds: float) -> str:
    """A time to three digits, in the unit that suits it."""
    units = (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3))
    unit, size = next((pair for pair in units if seconds >= pair[1]), ("µs", 1e-6))
    number = seconds / size
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
