"""What each stage of a run must cost: operations and bytes, and the seconds they take on a machine.

For N parameters, m stored columns, q probes and k eigenpairs. A round of c columns comes after b
stored ones, whose Gram matrix is known for the first f; the merge comes after the last round.
Products of tall arrays are in float64.

| stage | operations | numbers |
| --- | --- | --- |
| measure, a column | a matvec, and in round 1 its sketch | N written, in later rounds N read |
| range_finder | N (b² - f²) + 2 N b c | 2 N b read, N c written |
| merge | N (m + q)² - N b² | N (m + q) read and written |
| decompose | 2 N m k | N m read, N k written |

Then range_finder solves an eigenproblem of size b, decompose two of size m.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from skerch.jobs.config import Config
from skerch.jobs.pipeline import Task
from skerch.jobs.stages.layout import array_manifest

ITEMS = {"float32": 4, "float64": 8}  # bytes
Costs = Mapping[str, float]  # seconds by part: "HVPs", "sketch", "disk", "Gram", "eigh"


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


def costs(
    task: Task, config: Config, N: int, matvec: float, machine: Machine, writers: int = 1
) -> Costs:
    """Seconds of a task by part, besides its start; the training is done elsewhere.

    Measurement tasks share the disk with as many `writers`.
    """
    rounds, k = config.sketch.each_round(), config.sketch.outer
    number = task.arguments.get("round", len(rounds))
    *_, known, before = 0, 0, *accumulate(each.stored for each in rounds[: number - 1])
    m, columns = sum(each.stored for each in rounds), rounds[number - 1].columns
    width, column = m + config.sketch.probes, N * ITEMS[config.hessian.dtype]
    if task.stage == "measure":
        first = task.arguments["tasks"][0] * config.launcher.blocks_per_task
        blocks = array_manifest(config, rounds[number - 1], N).blocks()
        own = blocks[first : first + len(task.outputs)]
        count = sum(block.stop - block.start for block in own)
        written = sum(block.stop - block.start for block in own if block.stored)
        read, sketch = (count, 0.0) if number > 1 else (0, machine.draw + count * machine.sketch)
        disk = column * (written / machine.write + read / machine.read)
        return {"HVPs": count * matvec, "sketch": N * sketch, "disk": disk * writers}
    read, written, operations, cubes = {
        "range_finder": (
            2 * before,
            columns,
            N * (before**2 - known**2 + 2 * before * columns),
            before**3,
        ),
        "merge": (width, width * config.consolidate, N * (width**2 - before**2), 0),
        "decompose": (m, k, 2 * N * m * k, 2 * m**3),
        "analyze": (k, 0, 0, 0),
    }.get(task.stage, (0, 0, 0, 0))
    return {
        "disk": column * (read / machine.read + written / machine.write),
        "Gram": operations / machine.gemm,
        "eigh": machine.eigh * cubes,
    }


def seconds(task: Task, of_task: Costs) -> float:
    """How long a task takes: blocks are written while the next is measured."""
    if task.stage != "measure":
        return sum(of_task.values())
    return max(of_task["HVPs"] + of_task["sketch"], of_task["disk"])
