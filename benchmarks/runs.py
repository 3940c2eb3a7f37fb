"""Runs task by task, of the quadratic or of another experiment."""

from __future__ import annotations

from benchmarks.harness import QUADRATIC
from skerch.jobs import config, pipeline
from skerch.jobs.config import Config
from skerch.jobs.launchers import local
from skerch.jobs.pipeline import Task
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import bind


def quadratic(*overrides: str, **sketch: int) -> Config:
    """The experiment of quadratic.yaml, with these sizes of its sketch."""
    sizes = (f"sketch.{key}={value}" for key, value in sketch.items())
    return config.load(QUADRATIC, [*overrides, *sizes])


def begin(wanted: Config, first: int = 0) -> tuple[RunDir, list[Task]]:
    """The run directory of a config, with the first tasks done, and the other tasks."""
    run, tasks = RunDir(wanted.run_dir), pipeline.tasks(wanted)
    bind(run, wanted)
    for task in tasks[:first]:
        do(wanted, task)
    return run, tasks[first:]


def do(wanted: Config, task: Task) -> None:
    """Run a task in this process."""
    error = local.run_task(wanted, task)
    if error:
        raise RuntimeError(error)
