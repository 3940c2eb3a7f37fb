"""A whole run, here: complete what is missing, and show what came out."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from skerch.files import sweep
from skerch.jobs import console, launchers, overlap_file, pipeline, task_log
from skerch.jobs.config import Config
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.submitted import refuse_live


def complete(config: Config, launch: launchers.Launch | None = None) -> dict[str, str]:
    """Run the missing tasks, by `launcher.name` or as given; each failure's sentence by task id."""
    from skerch.jobs.binding import bind, locked  # imports torch
    from skerch.jobs.plan import count_parameters

    launch = launch or launchers.load(config.launcher.name)
    run = RunDir(config.run_dir)
    tasks = pipeline.tasks(config)
    if pipeline.missing(tasks):
        count_parameters(config)
    with locked(run):
        refuse_live(run)
        bind(run, config)
        sweep(run.path)
        missing = pipeline.missing(tasks)
        if len(missing) < len(tasks):
            print(f"{len(tasks) - len(missing)} of {len(tasks)} tasks are done in {run.path}.")
        if not missing:
            return {}
        try:
            with console.report(len(missing)) as report:
                failures = launch(config, missing, report)
        except KeyboardInterrupt:
            print(
                "Interrupted; what is finished is kept: run the same command again to go on.",
                file=sys.stderr,
            )
            raise
    if failures:
        print(
            f"{len(failures)} of {len(missing)} tasks failed, or need one that did. Mend the cause "
            "and run the same command again: it goes on from here."
        )
    return failures


def print_table(config: Config) -> None:
    """Eigenvalues, residual and overlap of each finished Hessian, stage times, where files are."""
    run, name = RunDir(config.run_dir), method_name(config)
    sketch = config.sketch
    title = f"{name}: {sketch.outer} eigenpairs from {sketch.inner} matvecs, {sketch.probes} probes"
    table = Table(title=escape(title))
    for heading in ("step", "split", "top eigenvalues", "relative residual", "overlap"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for step in config.training.record_steps or []:
        for split in config.hessian.splits:
            path = run.step(name, step, split).overlap
            if path.exists():
                table.add_row(str(step), split, *_cells(path))
    if not table.row_count:
        return
    output = Console()
    if not output.is_terminal:
        output.width = 100  # a file has no columns to fold at
    output.print(table)
    for line in (
        _times(config, run),
        f"files    {run.method(name)}",
        f"figures  {run.figures}",
    ):
        output.print(line, markup=False, highlight=False, soft_wrap=True)


def _cells(path: Path) -> list[str]:
    """Top eigenvalues, residual and overlap, in words, from an overlap file."""
    found = overlap_file.read(path)
    residual, k = found["residual"], len(found["overlap"])
    multiple = found["overlap"][-1] / found["baseline"][-1]
    return [
        ", ".join(f"{value:.4g}" for value in found["eigenvalues"][:3]),
        f"{residual[-1] / residual[0]:.2%}",
        f"{found['overlap'][-1]:.4f}, {multiple:.2f} times k/N (k = {k})",
    ]


def _times(config: Config, run: RunDir) -> str:
    """The seconds that each stage took, summed over its tasks."""
    seconds: dict[str, float] = defaultdict(float)
    records = task_log.records(run)
    for task in pipeline.tasks(config):
        if task.id in records:
            seconds[task.stage] += records[task.id]["seconds"]
    return "seconds  " + ", ".join(f"{stage} {total:.1f}" for stage, total in seconds.items())
