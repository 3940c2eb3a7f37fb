"""What a run would take, from the config and N alone; with a block measured here, how long."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from skerch.curvature.backends import check_strategy
from skerch.curvature.parameters import select_parameters
from skerch.decompositions.recovery import check_size
from skerch.errors import SkerchError
from skerch.jobs import checkpoints, pipeline, problems
from skerch.jobs.calibrate import measure_pace
from skerch.jobs.cluster import resources
from skerch.jobs.config import Config, ConfigError
from skerch.jobs.operators import resolve_device
from skerch.jobs.pipeline import Task
from skerch.jobs.train import make_optimizer
from skerch.measurements.gram import SLAB_ROWS


def count_parameters(config: Config, here: bool = True) -> int:
    """N, from the problem's network, where all that can be known before the training is in order.

    The device is looked for where tasks are to run `here`. Raises ConfigError where the problem,
    the optimizer, the device, the strategy or the sizes of the sketch cannot be had.
    """
    problem = problems.load_problem(config.problem, config.problem_path)
    model = problems.build_model(problem)
    if config.training.checkpoints is None:
        make_optimizer(config.training, model)
    try:
        parameters = select_parameters(model, config.hessian.param_filter)
        N = sum(parameter.numel() for parameter in parameters.values())
        if here:
            resolve_device(config)
        check_strategy(config.hessian.strategy)
        check_size(N, config.sketch.inner)
    except SkerchError as error:
        raise ConfigError(str(error)) from error
    return N


def print_plan(config: Config, calibrate: bool = False) -> None:
    """Matvecs, tasks, files, disk and memory of one Hessian and of the whole run.

    With `calibrate` also the time of measuring, from a block that is measured here.
    """
    N, sketch = count_parameters(config), config.sketch
    sizes = sketch.round_sizes()
    itemsize = 8 if config.hessian.dtype == "float64" else 4
    stored = sum(size.stored for size in sizes)
    whole = (stored + sketch.probes) * N * itemsize
    found = sum(size.columns for size in sizes[1:]) * N * itemsize
    eigenvectors = sketch.outer * N * itemsize
    tasks = pipeline.tasks(config)
    hessians = len(config.training.record_steps or []) * len(config.hessian.splits)
    measuring = [task for task in tasks if task.stage == "measure"]
    width = stored + sketch.probes

    table = Table(title=f"{N:,} parameters, {hessians} Hessians")
    for heading in ("", "each", "in all"):
        table.add_column(heading, justify="right" if heading else "left")

    def row(name: str, each: float, text: Callable[[int], str] = "{:,}".format) -> None:
        table.add_row(name, text(round(each)), text(round(each * hessians)))

    row("Hessian matvecs", sketch.inner + sketch.probes)
    row("measurement tasks", len(measuring) / hessians)
    row("tasks", (len(tasks) - 1) / hessians)
    row("files", sum(len(task.outputs) for task in tasks[1:]) / hessians)
    until = "" if config.keep_blocks else ", until merged"
    row(f"disk: blocks{until}", whole + found, decimal)
    row("disk: merged", whole if config.consolidate else 0, decimal)
    row("disk: eigenvectors", eigenvectors, decimal)
    footnote = _add_times(table, config, measuring, hessians) if calibrate else None
    output = Console()
    output.print(table)
    # X, Y and its copy for the sketch, and the Y before as it is written, twice
    vectors = 5 * N * min(sketch.block_size, sketch.inner) * itemsize
    solver = 8 * (2 * SLAB_ROWS * width + 6 * width**2)
    output.print(
        f"memory   a worker about {decimal(vectors)} besides the network, its activations and "
        f"the sketch map; merge and solve about {decimal(solver)}.",
        soft_wrap=True,
    )
    for line in checkpoints.listing(config.training):
        output.print(line, markup=False, highlight=False, soft_wrap=True)
    if footnote is not None:
        output.print(footnote, soft_wrap=True)


def _add_times(table: Table, config: Config, measuring: list[Task], hessians: int) -> str:
    """Add rows on the time of measuring; a sentence on what they hold."""
    pace, sketch = measure_pace(config), config.sketch
    columns = [size.columns + size.probes for size in sketch.round_sizes()]
    tasks = Counter(task.arguments["round"] for task in measuring)
    full = min(config.launcher.blocks_per_task * sketch.block_size, max(columns))
    task = pace.start + pace.matvec * full
    total = pace.start * len(measuring) + pace.matvec * sum(columns) * hessians
    table.add_row("time: a matvec", duration(pace.matvec), "")
    table.add_row("time: a measurement task", duration(task), "")
    table.add_row("time: measuring, one worker", duration(total / hessians), duration(total))
    throttle = resources(config)["measure"].throttle
    if throttle is not None:
        waves = sum(math.ceil(count / hessians / throttle) for count in tasks.values())
        elapsed = duration(task * waves)
        table.add_row(f"time: measuring, throttle {throttle}", elapsed, elapsed)
    return (
        f"time     of blocks measured here: {pace.device}, threads {pace.threads}, strategy "
        f"{pace.strategy}. Training, queue, disk, range finder, merge and the start of Python are "
        "not in it; throttled, all Hessians are measured side by side. "
        f"resources.measure.time={max(10, math.ceil(task / 30))}min is twice a task, or more."
    )


def duration(seconds: float) -> str:
    """A time to three digits, in the unit that suits it."""
    units = (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3))
    unit, size = next((pair for pair in units if seconds >= pair[1]), ("µs", 1e-6))
    number = seconds / size
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
