"""What a run of sketches would take; with a block measured here, how long."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

from rich.filesize import decimal
from rich.table import Table

from skerch.a_priori import ROUNDS, expected_residual
from skerch.decompositions.recoveries import RECOVERIES
from skerch.hdf5 import stored_size
from skerch.jobs import pipeline
from skerch.jobs.commands.plan import (
    Plan,
    Row,
    count_hessians,
    duration,
    memory_warnings,
    python_memory,
)
from skerch.jobs.commands.seigh.calibrate import Pace, measure_pace
from skerch.jobs.commands.seigh.costs import ITEMS, Machine, costs, seconds, workload
from skerch.jobs.commands.seigh.disk import hessian_disk, training_disk
from skerch.jobs.config import Config
from skerch.jobs.config.resources import resources
from skerch.jobs.config.start import PREVIOUS, in_order, source_of
from skerch.jobs.launchers.slurm.jobs import in_a_row
from skerch.jobs.pipeline import Task
from skerch.jobs.pipeline.seigh import at_once
from skerch.measurements.gram import SLAB_ROWS

MEASURING = ("measure", "rounds")
DISK = 2e8  # bytes a second that a shared disk is taken to read and write for one task


def calibrate(config: Config) -> tuple[Pace, float]:
    """How fast a worker is here, and the seconds of a full block."""
    pace = measure_pace(config)
    return pace, pace.matvec * config.sketch.block_size


def plan(config: Config, N: int, tasks: list[Task], pace: Pace | None) -> Plan:
    """What the sketches of a config take."""
    sketch, hessians = config.sketch, count_hessians(config)
    measuring = [task for task in tasks if task.stage in MEASURING]

    def row(name: str, each: float, text: Callable[[int], str] = "{:,}".format) -> Row:
        return name, text(round(each)), text(round(each * hessians))

    most = "" if sketch.target is None else ", at most"
    work = [
        row(f"Hessian matvecs{most}", sketch.inner + sketch.probes),
        row("measurement tasks", len(measuring) / hessians),
    ]
    each = hessian_disk(config, N)
    stays, peak = run_disk(config, N)
    until = "" if config.keep_blocks else ", until merged"
    rest = [
        row(f"disk: blocks{until}", each.blocks, decimal),
        row("disk: merged", each.merged, decimal),
        row("disk: eigenvectors", each.eigenvectors, decimal),
        ("disk: at most", decimal(each.peak), decimal(peak)),
        ("disk: what stays", decimal(each.stays), decimal(stays)),
    ]
    notes = [_disk_note(config, N), *_memory_notes(config, N), *_start_notes(config, N)]
    if sketch.target is not None:
        notes.append("target   rounds end once it is reached: all of this is the most it may take.")
    if pace:
        rest += _time_rows(config, N, pace)
        notes.append(_time_note(config, N, pace))
    return Plan(work, rest, notes, [_rounds_table(config, N, pace)])


def run_disk(config: Config, N: int) -> tuple[int, int]:
    """The bytes of a run that stay, and that it takes at most.

    Where Hessians do not come one after another, all of them may be at their peak.
    """
    each, hessians, launcher = hessian_disk(config, N), count_hessians(config), config.launcher
    in_order = (
        config.cluster is None and launcher.workers == 1 and launcher.name in ("auto", "local")
    )
    most = (hessians - 1) * each.stays + each.peak if in_order else hessians * each.peak
    training = training_disk(config, N)
    return training + hessians * each.stays, training + most


def _disk_note(config: Config, N: int) -> str:
    """What is not counted, and what the keys that save disk would leave."""
    savings = ""
    if config.keep_blocks and config.consolidate:  # they must not both be false
        without = {
            "keep_blocks": replace(config, keep_blocks=False),
            "consolidate": replace(config, consolidate=False),
        }
        for key, other in without.items():
            stays, most = run_disk(other, N)
            savings += f" {key}=false takes {decimal(most)} at most and leaves {decimal(stays)}."
    return f"disk     without the datapoints and a checkpoint of the training.{savings}"


def _memory_notes(config: Config, N: int) -> Iterator[str]:
    """What stages take, and a warning where less is asked for."""
    sketch = config.sketch
    width = sum(each.stored for each in sketch.each_round()) + sketch.probes
    width += sketch.start is not None and sketch.each_round()[0].columns
    widest = max(sketch.probes, *(each.columns for each in sketch.each_round()))
    # X, Y and its copy for the sketch, and the Y before as it is written, twice
    column = 5 * N * ITEMS[config.hessian.dtype]
    vectors = column * min(sketch.block_size, widest)
    solver = 8 * (2 * SLAB_ROWS * width + 6 * width**2)
    yield (
        f"memory   a worker about {decimal(vectors)} besides the network, its activations and "
        f"the sketch map; merge and solve about {decimal(solver)}; and each "
        f"{decimal(python_memory())} for Python with PyTorch, as this process."
    )
    needs = {"measure": vectors, "range_finder": solver, "merge": solver, "decompose": solver}
    if at_once(config):
        needs["measure"] += solver
    yield from memory_warnings(config, needs)
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if config.cluster is None and needs["measure"] + python_memory() > here:
        yield (
            f"warning  a worker takes more than the {decimal(here)} of this machine; give it a "
            f"smaller sketch.block_size: vectors take {decimal(column)} a column of a block."
        )


def _start_notes(config: Config, N: int) -> Iterator[str]:
    """What a start waits for and takes, and when it pays."""
    sketch, hessians = config.sketch, in_order(config)
    if sketch.start is None:
        return
    columns = sketch.each_round()[0].columns
    size = stored_size((N, columns), ITEMS[config.hessian.dtype], sketch.block_size)
    started = sum(source_of(config, *each) is not None for each in hessians)
    waits = (
        "each waits for the step before"
        if sketch.start == PREVIOUS
        else f"they wait for step {sketch.start['step']}, {sketch.start['split']}"
    )
    yield (
        f"start    {started} of {len(hessians)} Hessians have one: {waits}, and its {columns} "
        f"vectors are kept in two files of {decimal(size)}. It pays in two or three rounds; many "
        "small ones do as much without it (docs/accuracy.md)."
    )


def _times(config: Config, N: int, pace: Pace) -> tuple[dict[str, list[float]], float]:
    """The seconds of a Hessian's measurement tasks, by array, and of all its other tasks."""
    machine = Machine(pace.gemm, DISK, DISK, pace.eigh, 0.0, 0.0, pace.start)
    rest, arrays = 0.0, defaultdict[str, list[float]](list)
    tasks = pipeline.tasks(config)[1:]
    for task in tasks[: len(tasks) // count_hessians(config)]:
        takes = seconds(task, costs(workload(task, config, N), pace.matvec, machine))
        if task.stage not in MEASURING:
            rest += takes
        else:
            arrays[task.array or task.id].append(machine.start + takes)
    return arrays, rest


def _at_once(config: Config) -> float:
    """How many measurement tasks run side by side."""
    throttle = resources(config)["measure"].throttle
    if config.cluster is not None or throttle is not None:
        return throttle or math.inf
    return config.launcher.workers


def _waves(arrays: dict[str, list[float]], at_once: float) -> float:
    """The seconds of arrays one after another, so many of whose tasks run side by side."""
    return sum(math.ceil(len(a) / at_once) * max(a) for a in arrays.values())


def _rounds_table(config: Config, N: int, pace: Pace | None) -> Table:
    """What other numbers of rounds would bring and cost."""
    sketch = config.sketch
    table = Table(title=f"{sketch.outer} eigenpairs from {sketch.inner} matvecs")
    for heading in ("rounds", "residual / best", "jobs in a row", *["time"] * bool(pace)):
        table.add_column(heading, justify="right")
    number = len(sketch.each_round())
    recipe = RECOVERIES[sketch.recovery]
    for rounds in sorted({number, *(n for n in ROUNDS if n <= min(recipe.most, sketch.inner))}):
        as_is = rounds == number
        other = config if as_is else replace(config, sketch=replace(sketch, rounds=rounds))
        expected = expected_residual(sketch.outer, sketch.inner, rounds)
        known = expected is not None and sketch.recovery == "nystrom"
        cells = [f"{rounds}", f"about {expected:.3f}" if known else "-"]
        cells.append(f"{in_a_row(other)}")
        if pace:
            arrays, rest = _times(other, N, pace)
            cells.append(duration(_waves(arrays, _at_once(other)) + rest))
        table.add_row(*cells, style="bold" if as_is else None)
    return table


def _time_rows(config: Config, N: int, pace: Pace) -> Iterator[Row]:
    """The time of a run, and of its parts."""
    hessians = count_hessians(config)
    arrays, rest = _times(config, N, pace)
    measuring = sum(map(sum, arrays.values()))
    yield "time: a matvec", duration(pace.matvec), ""
    yield "time: a measurement task", duration(_longest(arrays)), ""
    for name, one in (("measuring", measuring), ("all", measuring + rest)):
        yield f"time: {name}, one worker", duration(one), duration(hessians * one)

    throttle, workers = resources(config)["measure"].throttle, config.launcher.workers
    on_slurm = config.cluster is not None or throttle is not None
    if on_slurm or workers > 1:
        each = _waves(arrays, _at_once(config)) + rest
        whole = each if on_slurm else max(each, hessians * (measuring + rest) / workers)
        limit = f"throttle {throttle}" if throttle else "no throttle"
        how = limit if on_slurm else f"{workers} workers"
        yield f"time: all, {how}", duration(each), duration(whole)


def _time_note(config: Config, N: int, pace: Pace) -> str:
    """What the times hold, and how long a task may take."""
    longest, peak = _longest(_times(config, N, pace)[0]), decimal(python_memory())
    return (
        f"time     of blocks and products timed here: {pace.device}, threads {pace.threads}, "
        f"strategy {pace.strategy}; the disk is taken to do {decimal(int(DISK))}/s. Training, "
        "layouts, figures, queue and the start of Python are not in it; on Slurm all Hessians are "
        f"measured side by side. resources.measure.time={max(10, math.ceil(longest / 30))}min is "
        f"twice a task, or more. With Python and the network a block took {peak} of memory at most."
    )


def _longest(arrays: dict[str, list[float]]) -> float:
    return max(map(max, arrays.values()))
