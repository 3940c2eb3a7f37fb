"""A whole run, here: complete what is missing, and show what came out."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.table import Table

from skerch.jobs import console, launchers, pipeline, task_log
from skerch.jobs.config import Config
from skerch.jobs.plan import count_parameters
from skerch.jobs.run_dir import RunDir, method_name


def complete(config: Config) -> dict[str, str]:
    """Run the missing tasks; the sentence of each failure by task id."""
    launch = launchers.load(config.launcher.name)
    run = RunDir(config.run_dir)
    tasks = pipeline.tasks(config)
    missing = pipeline.missing(tasks)
    if missing:
        count_parameters(config)
    run.bind(config)
    if len(missing) < len(tasks):
        print(f"{len(tasks) - len(missing)} of {len(tasks)} tasks are done in {run.path}.")
    if not missing:
        return {}
    with console.report(len(missing)) as report:
        failures = launch(config, missing, report)
    if failures:
        print(
            f"{len(failures)} of {len(missing)} tasks failed, or need one that did. Mend the cause "
            "and run the same command again: it goes on from here."
        )
    return failures


def print_table(config: Config) -> None:
    """Eigenvalues, residual and overlap of each finished Hessian, stage times, where files are."""
    run, name = RunDir(config.run_dir), method_name(config)
    outer = config.sketch.outer
    table = Table(title=f"{name}: {outer} eigenpairs from {config.sketch.inner} matvecs")
    for heading in (
        "step",
        "split",
        "top eigenvalues",
        "relative residual",
        f"overlap, k = {outer}",
    ):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for step in config.training.record_steps or []:
        for split in config.hessian.splits:
            path = run.step(name, step, split).overlap
            if path.exists():
                table.add_row(str(step), split, *_cells(json.loads(path.read_text())))
    if not table.row_count:
        return
    output = Console(width=max(Console().width, 100))
    output.print(table)
    output.print(_times(config, run), highlight=False)
    output.print(f"files    {run.method(name)}", soft_wrap=True)
    output.print(f"figures  {run.figures}", soft_wrap=True)


def _cells(overlap: dict[str, Any]) -> list[str]:
    """Top eigenvalues, residual and overlap, in words."""
    residual = overlap["residual"]
    relative = residual[-1] / residual[0] if residual[0] > 0 else 0.0
    multiple = overlap["overlap"][-1] / overlap["baseline"][-1]
    return [
        ", ".join(f"{value:.4g}" for value in overlap["eigenvalues"][:3]),
        f"{relative:.2%}",
        f"{overlap['overlap'][-1]:.4f} ({multiple:.2f} times k/N)",
    ]


def _times(config: Config, run: RunDir) -> str:
    """The seconds that each stage took, summed over its tasks."""
    seconds: dict[str, float] = defaultdict(float)
    records = task_log.records(run)
    for task in pipeline.tasks(config):
        if task.id in records:
            seconds[task.stage] += records[task.id]["seconds"]
    return "seconds  " + ", ".join(f"{stage} {total:.1f}" for stage, total in seconds.items())
