"""What came out of a run: as a table, JSON or CSV."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from csv import DictWriter
from itertools import product
from json import dumps
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from rich.console import Console
from rich.table import Table

from skerch.jobs import pipeline
from skerch.jobs.commands import part
from skerch.jobs.config import Config
from skerch.jobs.pipeline import task_log
from skerch.jobs.run_dir import RunDir, StepDir, command, method_name

WIDTH = 100  # columns of a file with tables
Hessians: TypeAlias = Mapping[tuple[int, str], Any]  # by step and split; None where there is none


class Results(Protocol):
    """What the module `results` of a method's family has."""

    def read(self, path: Path) -> Any:
        """The results in a file."""

    def title(self, config: Config) -> str:
        """What is asked for, in words."""

    def tables(self, config: Config, hessians: Hessians) -> Iterable[Table]:
        """What is found; a table without rows is not shown."""

    def lines(self, run: RunDir, config: Config, hessians: Hessians) -> Iterable[str]:
        """What is to be known besides."""

    def row(self, directory: StepDir, config: Config, results: Any) -> dict[str, Any]:
        """One Hessian's results as numbers, also where it has none."""


def found(run: RunDir, config: Config, every: bool = True) -> Hessians:
    """What a method's Hessians have come to, by step and split; None for one that is missing.

    It is `every` one that the run has, or those that the config asks for.
    """
    own: Results = part.of(config, "results")
    asked = product(config.training.record_steps, config.hessian.splits)
    hessians = run.hessians(config) if every else asked
    paths = {hessian: run.result(config, *hessian) for hessian in hessians}
    return {key: own.read(path) if path.exists() else None for key, path in paths.items()}


def print_results(
    run: RunDir, name: str | None = None, *, json: bool = False, csv: bool = False
) -> None:
    """Print what was found, of one method or of all of a run, as tables, JSON or CSV."""
    latest = run.load(name)
    configs = [latest] if name else [run.load(each) for each in run.methods] or [latest]
    if not json and not csv:
        for config in configs:
            print_table(config, every=True)
        return
    rows = [
        {"name": method_name(config), "step": step, "split": split}
        | part.of(config, "results").row(run.step(method_name(config), step, split), config, each)
        for config in configs
        for (step, split), each in found(run, config).items()
    ]
    print_rows(rows, json=json)


def print_rows(rows: Sequence[Mapping[str, Any]], *, json: bool) -> None:
    """Print rows of numbers as JSON or as CSV."""
    if json:
        print(dumps(rows, indent=1))
    else:
        names = dict.fromkeys(name for row in rows for name in row)
        writer = DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def print_table(config: Config, every: bool = False) -> None:
    """Print each Hessian's results in a row, what is missing, times, and where files are.

    It is of those that the config asks for, or of `every` one that the run has.
    """
    run, name = RunDir(config.run_dir), method_name(config)
    own: Results = part.of(config, "results")
    hessians = found(run, config, every)
    output = Console()
    if not output.is_terminal:
        output.width = WIDTH  # a file has no columns to fold at
    lines = [
        *own.lines(run, config, hessians),
        *_missing(hessians, run),
        *_times(config, run),
        f"files    {run.method(name)}",
        f"figures  {run.figures}",
    ]
    title = f"{name}: {own.title(config)}"
    output.print(title, markup=False, highlight=False, soft_wrap=True)
    for each in filter(lambda each: each.row_count, own.tables(config, hessians)):
        output.print(each)
    for line in lines:
        output.print(line, markup=False, highlight=False, soft_wrap=True)


def columns(*headings: str) -> Table:
    """An empty table, which is to have a row a Hessian."""
    table = Table(*headings, pad_edge=False)  # so that it fits into 80 columns
    for column in table.columns:
        column.justify = "left" if column.header == "split" else "right"
    return table


def _missing(hessians: Hessians, run: RunDir) -> Iterator[str]:
    """A line on what is not there, if anything is not."""
    missing = [f"step {step} {split}" for (step, split), each in hessians.items() if each is None]
    if missing:
        yield (
            f"missing  {len(missing)} of {len(hessians)} Hessians: {', '.join(missing)}; see: "
            f"{command('status', run.path)}"
        )


def _times(config: Config, run: RunDir) -> Iterator[str]:
    """A line on the seconds that each stage took, summed over its tasks, once one has ended."""
    seconds: dict[str, float] = defaultdict(float)
    records = task_log.records(run)
    for task in pipeline.tasks(config):
        if task.id in records:
            seconds[task.stage] += records[task.id]["seconds"]
    if seconds:
        yield "seconds  " + ", ".join(f"{stage} {total:.1f}" for stage, total in seconds.items())
