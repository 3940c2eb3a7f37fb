"""A task: what it needs and leaves, and whether it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError
from skerch.jobs.config.stages import STAGES


@dataclass(frozen=True)
class Task:
    """A stage on one part of a run.

    It is done when it is `made`; where its outputs are only a means, also when all tasks that read
    them are done.
    """

    id: str
    stage: str  # a row of STAGES
    arguments: dict[str, Any]  # JSON: step, split, round, tasks; what there is of them
    outputs: tuple[Path, ...]
    needs: tuple[str, ...]  # ids of the tasks whose outputs it reads
    records: tuple[int | str, ...] = ()  # the steps and splits that a training's outputs must have
    current: Callable[[], bool] | None = None  # whether outputs that exist are as large as asked

    @property
    def array(self) -> str | None:
        """What the ids of all tasks of its array begin with, if it is of one."""
        return self.id.rpartition(".")[0] if STAGES[self.stage].array else None

    @property
    def made(self) -> bool:
        """Whether its outputs exist, with all that they must have."""
        return (
            all(map(os.path.exists, self.outputs))
            and (not self.records or _has(self.outputs[0], self.records))
            and (self.current is None or self.current())
        )

    @property
    def is_means(self) -> bool:
        """Whether the outputs may be removed once they have been read."""
        return not STAGES[self.stage].result


def _has(parameters: Path, records: tuple[int | str, ...]) -> bool:
    """Whether recorded parameters are of these steps, and their datapoints of these splits.

    A damaged file counts as having them: who reads it refuses it by name.
    """
    from skerch.hdf5 import open_hdf5  # h5py takes a tenth of a second

    try:
        with open_hdf5(parameters) as file:
            datapoints = json.loads(file["description"][()].tobytes())["datapoints"]
            return {*file["steps"][()].tolist(), *datapoints}.issuperset(records)
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError):
        return True


def missing(all_tasks: list[Task]) -> list[Task]:
    """The tasks that are not done, in order."""
    consumers: dict[str, list[str]] = {task.id: [] for task in all_tasks}
    for task in all_tasks:
        for need in task.needs:
            consumers[need].append(task.id)
    done: dict[str, bool] = {}
    for task in reversed(all_tasks):
        read_by = consumers[task.id]
        done[task.id] = task.made or (task.is_means and all(done[consumer] for consumer in read_by))
    return [task for task in all_tasks if not done[task.id]]


def refusal(path: Path, read: Callable[[], object]) -> Iterator[str]:
    """The sentence with which a file that is there is refused, if it is."""
    if path.exists():
        try:
            read()
        except SkerchError as error:
            yield str(error)
