"""What each stage of a run must cost: operations and bytes, and the seconds they take on a machine.

For the `nystrom` recovery in two rounds and float32: N parameters, m = m₁ + m₂ matvecs, q probes,
k eigenpairs. Products of tall arrays are in float64.

| stage | operations | bytes |
| --- | --- | --- |
| measure, a column | a matvec, and in round 1 its sketch | 4 N written, in round 2 4 N read |
| range_finder | N m₁² + 2 N m₁ m₂ | 8 N m₁ read, 4 N m₂ written |
| merge | N (m + q)² - N m₁² | 4 N (m + q) read and written |
| decompose | 2 N m k | 4 N m read, 4 N k written |

Then range_finder solves an eigenproblem of size m₁, decompose two of size m.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler import Work

from skerch.jobs.config import Config
from skerch.jobs.layout import array_manifest
from skerch.jobs.pipeline import Task

ITEM = 4  # bytes of a float32
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
    sizes, k = config.sketch.round_sizes(), config.sketch.outer
    m1, m = sizes[0].columns, sum(size.stored for size in sizes)
    width, column = m + config.sketch.probes, ITEM * N
    if task.stage == "measure":
        number, p = task.arguments["round"], config.launcher.blocks_per_task
        blocks = array_manifest(config, sizes[number - 1], N).blocks()
        (t,) = task.arguments["tasks"]
        columns = sum(block.stop - block.start for block in blocks[t * p : (t + 1) * p])
        disk = columns * column / machine.write
        if number == 1:
            sketch = N * (machine.draw + columns * machine.sketch)
        else:
            sketch, disk = 0.0, disk + columns * column / machine.read
        return {"HVPs": columns * matvec, "sketch": sketch, "disk": disk * writers}
    read, written, operations, cubes = {
        "range_finder": (2 * m1, m - m1, N * m1 * (m1 + 2 * (m - m1)), m1**3),
        "merge": (width, width * config.consolidate, N * (width**2 - m1**2), 0),
        "decompose": (m, k, 2 * N * m * k, 2 * m**3),
        "analyze": (k, 0, 0, 0),
    }.get(task.stage, (0, 0, 0, 0))
    return {
        "disk": column * (read / machine.read + written / machine.write),
        "Gram": operations / machine.gemm,
        "eigh": machine.eigh * cubes,
    }


def work(task: Task, of_task: Costs, start: float) -> Work:
    """What the scheduler needs of it: blocks are written while the next is measured."""
    if task.stage != "measure":
        return Work(start, sum(of_task.values()))
    return Work(start, max(of_task["HVPs"] + of_task["sketch"], of_task["disk"]))
