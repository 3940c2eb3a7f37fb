"""What a run would take, from the config and N alone; with a block measured here, how long."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from resource import RUSAGE_SELF, getrusage

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from skerch.a_priori import ROUNDS, expected_residual
from skerch.decompositions.recoveries import RECOVERIES
from skerch.hdf5 import stored_size
from skerch.jobs import pipeline
from skerch.jobs.commands.calibrate import Pace, measure_pace
from skerch.jobs.commands.costs import ITEMS, Machine, costs, seconds, workload
from skerch.jobs.commands.disk import hessian_disk, training_disk
from skerch.jobs.config import Config, checkpoints
from skerch.jobs.config.resources import resources
from skerch.jobs.config.start import PREVIOUS, in_order, source_of
from skerch.jobs.launchers.preflight import count_parameters
from skerch.jobs.pipeline.seigh import at_once
from skerch.jobs.run_dir import RunDir
from skerch.measurements.gram import SLAB_ROWS

MEASURING = ("measure", "rounds")
DISK = 2e8  # bytes a second that a shared disk is taken to read and write for one task


def print_plan(config: Config, calibrate: bool = False) -> None:
    """Matvecs, tasks, files, disk and memory of one Hessian and of the whole run.

    With `calibrate` also the time, from a block and products that are timed here.
    """
    N, sketch = count_parameters(config), config.sketch
    tasks, hessians = pipeline.tasks(config), _count_hessians(config)
    measuring = [task for task in tasks if task.stage in MEASURING]

    table = Table(title=f"{N:,} parameters, {hessians} Hessians")
    for heading in ("", "each", "in all"):
        table.add_column(heading, justify="right" if heading else "left")

    def row(name: str, each: float, text: Callable[[int], str] = "{:,}".format) -> None:
        table.add_row(name, text(round(each)), text(round(each * hessians)))

    if measuring:
        most = "" if sketch.target is None else ", at most"
        row(f"Hessian matvecs{most}", sketch.inner + sketch.probes)
        row("measurement tasks", len(measuring) / hessians)
    table.add_row("tasks, and the training", f"{(len(tasks) - 1) // hessians:,}", f"{len(tasks):,}")
    if RunDir(config.run_dir).config.exists():
        needless = "" if all(task.outputs for task in tasks) else ", or not needed"
        done = len(tasks) - len(pipeline.missing(tasks))
        table.add_row(f"tasks, already done{needless}", "", f"{done:,}")
    row("files", sum(len(task.outputs) for task in tasks[1:]) / hessians)
    notes = []
    if measuring:
        each = hessian_disk(config, N)
        until = "" if config.keep_blocks else ", until merged"
        row(f"disk: blocks{until}", each.blocks, decimal)
        row("disk: merged", each.merged, decimal)
        row("disk: eigenvectors", each.eigenvectors, decimal)
        stays, peak = run_disk(config, N)
        table.add_row("disk: at most", decimal(each.peak), decimal(peak))
        table.add_row("disk: what stays", decimal(each.stays), decimal(stays))
        notes += [_disk_note(config, N), *_memory_notes(config, N), *_start_notes(config, N)]
    if measuring and sketch.target is not None:
        notes.append("target   rounds end once it is reached: all of this is the most it may take.")
    notes += checkpoints.listing(config.training)
    pace = measure_pace(config) if calibrate and measuring else None
    if pace:
        notes.append(_add_times(table, config, N, pace))
    output = Console()
    output.print(table)
    if measuring:
        output.print(_rounds_table(config, N, pace))
    for note in notes:
        output.print(note, markup=False, highlight=False, soft_wrap=True)


def _count_hessians(config: Config) -> int:
    return len(config.training.record_steps) * len(config.hessian.splits)


def run_disk(config: Config, N: int) -> tuple[int, int]:
    """The bytes of a run that stay, and that it takes at most.

    Where Hessians do not come one after another, all of them may be at their peak.
    """
    each, hessians, launcher = hessian_disk(config, N), _count_hessians(config), config.launcher
    in_order = config.cluster is None and launcher.name == "local" and launcher.workers == 1
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
    # X, Y and its copy for the sketch, and the Y before as it is written, twice
    vectors = 5 * N * min(sketch.block_size, sketch.inner) * ITEMS[config.hessian.dtype]
    solver = 8 * (2 * SLAB_ROWS * width + 6 * width**2)
    python = getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    yield (
        f"memory   a worker about {decimal(vectors)} besides the network, its activations and "
        f"the sketch map; merge and solve about {decimal(solver)}; and each {decimal(python)} for "
        "Python with PyTorch, as this process."
    )
    needs = {"measure": vectors, "range_finder": solver, "merge": solver, "decompose": solver}
    if at_once(config):
        needs["measure"] += solver
    for stage, wanted in resources(config).items():
        needed = python + needs.get(stage, 0)
        if wanted.memory and not wanted.gpus and wanted.memory * 2**20 < needed:
            yield (
                f"warning  resources.{stage}.memory is {wanted.memory}M, which is too little "
                f"here; give it {math.ceil(needed / 2**20)}M or more."
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
    for task in tasks[: len(tasks) // _count_hessians(config)]:
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
        in_a_row = {task.array or task.id for task in pipeline.tasks(other)[1:]}
        cells = [f"{rounds}", f"about {expected:.3f}" if known else "-"]
        cells.append(f"{len(in_a_row) // _count_hessians(config)}")
        if pace:
            arrays, rest = _times(other, N, pace)
            cells.append(duration(_waves(arrays, _at_once(other)) + rest))
        table.add_row(*cells, style="bold" if as_is else None)
    return table


def _add_times(table: Table, config: Config, N: int, pace: Pace) -> str:
    """Add rows on the time of a run; a sentence on what they hold."""
    hessians = _count_hessians(config)
    arrays, rest = _times(config, N, pace)
    measuring = sum(map(sum, arrays.values()))
    longest = max(map(max, arrays.values()))
    table.add_row("time: a matvec", duration(pace.matvec), "")
    table.add_row("time: a measurement task", duration(longest), "")
    for name, one in (("measuring", measuring), ("all", measuring + rest)):
        table.add_row(f"time: {name}, one worker", duration(one), duration(hessians * one))

    throttle, workers = resources(config)["measure"].throttle, config.launcher.workers
    on_slurm = config.cluster is not None or throttle is not None
    if on_slurm or workers > 1:
        each = _waves(arrays, _at_once(config)) + rest
        whole = each if on_slurm else max(each, hessians * (measuring + rest) / workers)
        limit = f"throttle {throttle}" if throttle else "no throttle"
        how = limit if on_slurm else f"{workers} workers"
        table.add_row(f"time: all, {how}", duration(each), duration(whole))
    return (
        f"time     of blocks and products timed here: {pace.device}, threads {pace.threads}, "
        f"strategy {pace.strategy}; the disk is taken to do {decimal(int(DISK))}/s. Training, "
        "layouts, figures, queue and the start of Python are not in it; on Slurm all Hessians are "
        f"measured side by side. resources.measure.time={max(10, math.ceil(longest / 30))}min is "
        "twice a task, or more."
    )


def duration(seconds: float) -> str:
    """A time to three digits, in the unit that suits it."""
    units = (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3))
    unit, size = next((pair for pair in units if seconds >= pair[1]), ("µs", 1e-6))
    number = seconds / size
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
