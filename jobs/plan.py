"""What a run would take, from the config and N alone: nothing is computed or written."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from skerch.curvature.parameters import select_parameters
from skerch.decompositions.recovery import RECOVERIES, check_size
from skerch.errors import SkerchError
from skerch.jobs import pipeline, problems
from skerch.jobs.config import Config, ConfigError
from skerch.measurements.gram import SLAB_ROWS


def count_parameters(config: Config) -> int:
    """N, from the problem's network; raises ConfigError where the sketch does not fit it."""
    problem = problems.load_problem(config.problem, config.problem_path)
    parameters = select_parameters(problem.model(), config.hessian.param_filter)
    N = sum(parameter.numel() for parameter in parameters.values())
    try:
        check_size(N, config.sketch.inner)
    except SkerchError as error:
        raise ConfigError(f"sketch: {error}") from error
    return N


def print_plan(config: Config) -> None:
    """Matvecs, tasks, files, disk and memory of one Hessian and of the whole run."""
    N, sketch = count_parameters(config), config.sketch
    recipe = RECOVERIES[sketch.recovery]
    sizes = recipe.sizes(sketch.rounds, sketch.outer, sketch.inner, sketch.probes)
    itemsize = 8 if config.hessian.dtype == "float64" else 4
    stored = sum(size.stored for size in sizes)
    whole = (stored + sketch.probes) * N * itemsize
    found = sizes[1].columns * N * itemsize if len(sizes) == 2 else 0
    eigenvectors = sketch.outer * N * itemsize
    tasks = pipeline.tasks(config)
    hessians = len(config.training.record_steps or []) * len(config.hessian.splits)
    measuring = [task for task in tasks if task.stage == "measure"]
    width = stored + sketch.probes

    table = Table(title=f"{N:,} parameters, {hessians} Hessians in {config.run_dir}")
    for heading in ("", "each", "in all"):
        table.add_column(heading, justify="right" if heading else "left")

    def row(name: str, each: float, text: str = "{:,.0f}", times: int = hessians) -> None:
        table.add_row(name, text.format(each), text.format(each * times))

    row("Hessian matvecs", sketch.inner + sketch.probes)
    row("measurement tasks", len(measuring) / hessians)
    row("tasks", (len(tasks) - 1) / hessians)
    row("files", sum(len(task.outputs) for task in tasks[1:]) / hessians)
    gigabytes = "{:,.3f} GB"
    row("disk: blocks, range", (whole + found) / 1e9 if config.keep_blocks else 0.0, gigabytes)
    row("disk: merged", whole / 1e9 if config.consolidate else 0.0, gigabytes)
    row("disk: eigenvectors", eigenvectors / 1e9, gigabytes)
    output = Console()
    output.print(table)
    vectors = 3 * N * sketch.block_size * itemsize
    solver = 8 * (2 * SLAB_ROWS * width + 6 * width**2)
    output.print(
        f"memory   a worker about {vectors / 1e9:,.2f} GB besides the network, its activations and "
        f"the sketch map; merge and solve about {solver / 1e9:,.2f} GB.",
        soft_wrap=True,
    )
