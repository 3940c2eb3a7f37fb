"""The tasks of one Hessian's sketched eigendecomposition.

layout → measure … → (range_finder → layout → measure … →)… merge → decompose → analyze
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skerch.jobs.config import Config
from skerch.jobs.pipeline.task import Task
from skerch.jobs.run_dir import RunDir, method_name
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
