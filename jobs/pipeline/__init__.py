"""Which tasks an experiment is, and which of them are missing.

The training, then the graph of the method for each recorded step and split. The graph follows from
the config alone, before N is known, so that a scheduler can be given all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Protocol

from skerch.jobs.config import Config
from skerch.jobs.config.methods import METHODS
from skerch.jobs.config.start import in_order
from skerch.jobs.pipeline.task import Task, missing
from skerch.jobs.run_dir import RunDir, StepDir

__all__ = ["Task", "method_of", "missing", "tasks"]


class MethodModule(Protocol):
    """What the module of a method's family has."""

    def check(self, config: Config, N: int) -> None:
        """Refuse what cannot be had of N parameters, before any task runs."""

    def hessian_tasks(self, config: Config, run: RunDir, step: int, split: str) -> Iterable[Task]:
        """The tasks of one Hessian, each after those that it needs."""

    def damage(self, directory: StepDir, outputs: Iterable[Path]) -> Iterator[str]:
        """A sentence on each output in a Hessian's folder that cannot be read back."""


def method_of(config: Config) -> MethodModule:
    """The module of the method that a config asks for."""
    family = METHODS[config.method].family
    module: MethodModule = import_module(f"skerch.jobs.pipeline.{family}")
    return module


def tasks(config: Config) -> list[Task]:
    """All tasks of an experiment, each after those that it needs."""
    run = RunDir(config.run_dir)
    outputs = (run.parameters, run.hessian_data, run.log)
    steps, splits = config.training.record_steps, config.hessian.splits
    result = [Task("train", "train", {}, outputs, (), (*steps, *splits))]
    method = method_of(config)
    for step, split in in_order(config):
        result += method.hessian_tasks(config, run, step, split)
    return result
