"""Which tasks an experiment is, what each needs and leaves, and which of them are missing.

    train → layout → measure … → (range_finder → layout → measure … →)… merge → decompose → analyze

once per recorded step and split. The graph follows from the config alone, before N is known, so
that a scheduler can be given all of it at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerch.jobs.config import Config
from skerch.jobs.run_dir import RunDir, method_name
from skerch.measurements.manifest import block_path, count_blocks, manifest_path

RESULTS = ("train", "decompose", "analyze")  # stages whose outputs a user wants to keep


@dataclass(frozen=True)
class Task:
    """A stage on one part of a run.

    It is done when it is `made`; where its outputs are only a means, also when all tasks that read
    them are done.
    """

    id: str
    stage: str  # a module of skerch.jobs
    arguments: dict[str, Any]  # JSON: step, split, round, tasks; what there is of them
    outputs: tuple[Path, ...]
    needs: tuple[str, ...]  # ids of the tasks whose outputs it reads
    records: tuple[int | str, ...] = ()  # the steps and splits that a training's outputs must have

    @property
    def array(self) -> str | None:
        """What the ids of all tasks of its measurement array begin with, if it is of one."""
        return self.id.rpartition(".")[0] if self.stage == "measure" else None

    @property
    def made(self) -> bool:
        """Whether its outputs exist, with all that they must have."""
        return all(map(os.path.exists, self.outputs)) and (
            not self.records or _has(self.outputs[0], self.records)
        )

    @property
    def is_means(self) -> bool:
        """Whether the outputs may be removed once they have been read."""
        return self.stage not in RESULTS


def tasks(config: Config) -> list[Task]:
    """All tasks of an experiment, each after those that it needs."""
    run = RunDir(config.run_dir)
    outputs = (run.parameters, run.hessian_data, run.log)
    steps, splits = config.training.record_steps or [], config.hessian.splits
    result = [Task("train", "train", {}, outputs, (), (*steps, *splits))]
    for step in steps:
        for split in splits:
            result += _hessian_tasks(config, run, step, split)
    return result


def _hessian_tasks(config: Config, run: RunDir, step: int, split: str) -> Iterator[Task]:
    """The tasks of one Hessian."""
    name = method_name(config)
    directory = run.step(name, step, split)
    sketch = config.sketch
    sizes = sketch.round_sizes()

    def task(
        stage: str, outputs: list[Path], needs: list[str], suffix: str = "", **arguments: Any
    ) -> Task:
        return Task(
            f"{name}.{directory.path.name}.{stage}{suffix}",
            stage,
            {"name": name, "step": step, "split": split, **arguments},
            tuple(outputs),
            tuple(needs),
        )

    finders: list[str] = []
    layouts: list[str] = []
    measures: list[str] = []
    for number, size in enumerate(sizes, start=1):
        array = directory.measurements(number)
        of_range: list[str] = []
        if number > 1:
            finder = task(
                "range_finder",
                [directory.range(number)],
                [*layouts, *measures, *finders[-1:]],
                f"-{number}",
                round=number,
            )
            of_range = [finder.id]
            finders += of_range
            yield finder
        layout = task(
            "layout",
            [manifest_path(array)],
            ["train", *layouts, *of_range],
            f"-{number}",
            round=number,
        )
        layouts.append(layout.id)
        yield layout
        blocks = count_blocks(size.columns, size.stored, size.probes, sketch.block_size)
        p = config.launcher.blocks_per_task
        for index in range(-(-blocks // p)):
            measure = task(
                "measure",
                [
                    block_path(array, block)
                    for block in range(index * p, min((index + 1) * p, blocks))
                ],
                ["train", layout.id, *of_range],
                f"-{number}.{index}",
                round=number,
                tasks=[index],
            )
            measures.append(measure.id)
            yield measure
    arrays = [*layouts, *measures]
    merge = task("merge", [directory.merged], [*arrays, *finders[-1:]])
    yield merge
    decompose = task(
        "decompose", [directory.eigh], [merge.id, *(layouts if config.consolidate else arrays)]
    )
    yield decompose
    figure = run.figure(name, step, split)
    yield task("analyze", [directory.overlap, figure], ["train", decompose.id])


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
