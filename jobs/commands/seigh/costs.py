"""What each stage of a run must cost: operations and bytes, and the seconds they take on a machine.

For N parameters, m stored columns, q probes and k eigenpairs. A round of c columns comes after b
stored ones, whose Gram matrix is known for the first f; the merge comes after the last round.
Products of tall arrays are in float64.

| stage | operations | numbers |
| --- | --- | --- |
| measure, a column | a matvec, and in round 1 its sketch | N written, in later rounds N read |
| rounds | all measure and range_finder | |
| range_finder | N (b² - f²) + 2 N b c | 2 N b read, N c written |
| merge | N (m + q)² - N b² | N (m + q) read and written |
| decompose | 2 N m k | N m read, N k written |

Then range_finder solves an eigenproblem of size b, decompose two of size m.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from itertools import accumulate

from skerch.jobs.config import Config
from skerch.jobs.pipeline import Task
from skerch.jobs.stages.layout import array_manifest

ITEMS = {"float32": 4, "float64": 8}  # bytes
Costs = Mapping[str, float]  # seconds by part: "HVPs", "sketch", "disk", "Gram", "eigh"


@dataclass(frozen=True)
class Workload:
    """What a task must do."""

    matvecs: int = 0
    drawn: int = 0  # coordinates of sketch maps that are made
    sketched: int = 0  # coordinates of columns that a map makes and compresses
    gram: int = 0  # float64 operations of Gram matrices
    products: int = 0  # and of other products of tall arrays
    cubes: int = 0  # n³ of eigenproblems of size n
    read: int = 0  # bytes
    written: int = 0


@dataclass(frozen=True)
class Machine:
    """What a worker's machine can do."""

    gemm: float  # float64 operations a second
    write: float  # bytes a second, all workers together
    read: float  # likewise
    eigh: float  # seconds of an eigenproblem of size n over n³
    draw: float  # seconds to make a sketch map, per coordinate
    sketch: float  # seconds of a column's test vector and sketch, per coordinate
    start: float  # core seconds until a task computes


def workload(task: Task, config: Config, N: int) -> Workload:
    """What a task must do once it has started; the training is done elsewhere."""
    rounds, k = config.sketch.each_round(), config.sketch.outer
    number = task.arguments.get("round", len(rounds))
    *_, known, before = 0, 0, *accumulate(each.stored for each in rounds[: number - 1])
    m, columns = sum(each.stored for each in rounds), rounds[number - 1].columns
    width, column = m + config.sketch.probes, N * ITEMS[config.hessian.dtype]
    if task.stage == "rounds":
        parts = [
            replace(task, stage=stage, arguments={"round": each.round, "tasks": [0]})
            for each in rounds
            for stage in ("measure", "range_finder")[: 1 + (each.round > 1)]
        ]
        works = [astuple(workload(part, config, N)) for part in parts]
        return Workload(*map(sum, zip(*works, strict=True)))
    if task.stage == "measure":
        first = task.arguments["tasks"][0] * config.launcher.blocks
        blocks = array_manifest(config, rounds[number - 1], N).blocks()
        own = blocks[first : first + len(task.outputs)]
        count = sum(block.stop - block.start for block in own)
        written = column * sum(block.stop - block.start for block in own if block.stored)
        if number > 1:
            return Workload(count, read=column * count, written=written)
        return Workload(count, drawn=N, sketched=N * count, written=written)
    if task.stage == "range_finder":
        return Workload(
            gram=N * (before**2 - known**2),
            products=2 * N * before * columns,
            cubes=before**3,
            read=2 * column * before,
            written=column * columns,
        )
    if task.stage == "merge":
        written = column * width * config.consolidate
        return Workload(gram=N * (width**2 - before**2), read=column * width, written=written)
    if task.stage == "decompose":
        return Workload(products=2 * N * m * k, cubes=2 * m**3, read=column * m, written=column * k)
    return Workload(read=column * k if task.stage == "analyze" else 0)


def costs(work: Workload, matvec: float, machine: Machine, sharing: int = 1) -> Costs:
    """Seconds of a task by part, besides its start; so many tasks are `sharing` the disk."""
    return {
        "HVPs": work.matvecs * matvec,
        "sketch": work.drawn * machine.draw + work.sketched * machine.sketch,
        "disk": sharing * (work.read / machine.read + work.written / machine.write),
        "Gram": (work.gram + work.products) / machine.gemm,
        "eigh": work.cubes * machine.eigh,
    }


def seconds(task: Task, of_task: Costs) -> float:
    """How long a task takes: blocks are written while the next is measured."""
    if task.stage != "measure":
        return sum(of_task.values())
    return max(of_task["HVPs"] + of_task["sketch"], of_task["disk"])
