"""How tasks are run: one file a launcher, with `launch(config, tasks, report)`.

`launch` runs tasks (each after those that it needs) and returns the sentence of each failed or
skipped task by its id; `report` is told what goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # a job's program is below this package, and imports nothing before its time
    from skerch.jobs.config import Config
    from skerch.jobs.pipeline import Task

LAUNCHERS = ("auto", "local", "srun", "mpi")


class Report(Protocol):
    """Told about tasks as they run."""

    def started(self, task: Task) -> None: ...

    def progress(self, task: Task, done: int, total: int, unit: str) -> None: ...

    def ended(self, task: Task, error: str | None) -> None: ...


Launch = Callable[["Config", "list[Task]", Report], dict[str, str]]


def chosen(name: str) -> str:
    """The launcher that `launcher.name` means here: auto uses an allocation of Slurm's."""
    from skerch.jobs.launchers.slurm.inside import is_allocation

    if name != "auto":
        return name
    return "srun" if is_allocation() else "local"


def load(name: str) -> Launch:
    """The `launch` function of a launcher.

    Raises:
        ConfigError: there is none of that name.
        SlurmError: srun has started several copies of this process.
    """
    from skerch.jobs.errors import ConfigError
    from skerch.jobs.launchers.slurm.inside import refuse_copies

    if name == "slurm":
        raise ConfigError("launcher.name=slurm: give it to Slurm by `python -m skerch submit`.")
    if name not in LAUNCHERS:
        raise ConfigError(f"launcher.name is {name!r}; it must be one of {', '.join(LAUNCHERS)}.")
    refuse_copies()
    module: Any = import_module(f"skerch.jobs.launchers.{chosen(name)}")
    launch: Launch = module.launch
    return launch
