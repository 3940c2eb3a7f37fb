"""The tasks of one Hessian's sketched eigendecomposition.

layout → measure … → (range_finder → layout → measure … →)… merge → decompose → analyze
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError
from skerch.jobs.config import Config
from skerch.jobs.pipeline.task import Task, refusal
from skerch.jobs.run_dir import RunDir, StepDir, method_name, overlap_file
from skerch.measurements.manifest import block_path, manifest_path


def hessian_tasks(config: Config, run: RunDir, step: int, split: str) -> Iterator[Task]:
    """The tasks of one Hessian."""
    name = method_name(config)
    directory = run.step(name, step, split)
    sketch = config.sketch

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
    for each in sketch.each_round():
        number = each.round
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
        blocks = each.count_blocks(sketch.block_size)
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


def damage(directory: StepDir, outputs: Iterable[Path]) -> Iterator[str]:
    """A sentence on each output in a Hessian's folder that cannot be read as it was written."""
    from skerch.hdf5 import verify  # h5py takes a tenth of a second

    for path in outputs:
        if path.suffix == ".h5":
            yield from refusal(path, partial(verify, path))
        if path.suffix == ".h5" and path.parent.name != "blocks":
            yield from refusal(path, partial(_check_measured, path, directory))
        elif path.name == "manifest.json" and path.exists():
            yield from _array_damage(path.parent)
        elif path.name == "overlap.json":
            yield from refusal(path, partial(overlap_file.read, path))


def _check_measured(path: Path, directory: StepDir) -> None:
    """Refuse a file that is of other measurements than are there."""
    from skerch import hdf5

    with hdf5.open_for_reading(path) as file:
        hashes = hdf5.attribute(file, "manifests").split()
    if not directory.measured(hashes):
        raise SkerchError(
            f"{path} is of other measurements than are there now; delete it and run again."
        )


def _array_damage(directory: Path) -> Iterator[str]:
    """A sentence on each block that is not as its array's manifest says."""
    from skerch.measurements.array import MeasurementArray  # imports torch

    try:
        array = MeasurementArray(directory)
    except SkerchError as error:
        yield str(error)
        return
    for block in array.manifest.blocks():
        yield from refusal(array.path(block.index), partial(array.open, block))
