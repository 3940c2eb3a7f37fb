"""Which tasks an experiment is, and which of them are missing.

The training, then the graph of the method for each recorded step and split. The graph follows from
the config alone, before N is known, so that a scheduler can be given all of it at once.
"""

from __future__ import annotations

from skerch.jobs.config import Config
from skerch.jobs.pipeline import seigh
from skerch.jobs.pipeline.task import Task, missing
from skerch.jobs.run_dir import RunDir

__all__ = ["Task", "missing", "tasks"]


def tasks(config: Config) -> list[Task]:
    """All tasks of an experiment, each after those that it needs."""
    run = RunDir(config.run_dir)
    outputs = (run.parameters, run.hessian_data, run.log)
    steps, splits = config.training.record_steps, config.hessian.splits
    result = [Task("train", "train", {}, outputs, (), (*steps, *splits))]
    for step in steps:
        for split in splits:
            result += seigh.hessian_tasks(config, run, step, split)
    return result
