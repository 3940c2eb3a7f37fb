"""The study of random subspaces: as a table, JSON, CSV and a figure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from csv import DictWriter
from dataclasses import asdict, fields
from io import StringIO
from json import dumps
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from skerch.analysis.figures import metrics_figure, save
from skerch.analysis.grassmann import METRICS
from skerch.analysis.synthetic import Row, study
from skerch.errors import UsageError
from skerch.files import write_atomically

Number = TypeVar("Number", int, float)


def print_study(
    dimensions: str,
    ratios: str,
    draws: int,
    seed: int,
    *,
    json: bool = False,
    csv: bool = False,
    out: Path | None = None,
) -> None:
    """Print the metrics of random subspaces, and write their figure and CSV into a folder."""
    if seed < 0:
        raise UsageError(f"--seed {seed} must be 0 or more.")
    rows = study(
        _numbers(dimensions, "--dimensions", int),
        _numbers(ratios, "--ratios", float),
        draws=draws,
        seed=seed,
    )
    if json:
        print(dumps([asdict(row) for row in rows], indent=1))
    elif csv:
        sys.stdout.write(_csv(rows))
    else:
        _print_tables(rows, f"{draws} draws, seed {seed}")
    if out:
        path = out / "grassmann.csv"
        write_atomically(path, lambda file: file.write_text(_csv(rows), encoding="utf-8"))
        save(metrics_figure(rows), out / "grassmann.png")


def _numbers(text: str, option: str, kind: type[Number]) -> list[Number]:
    """The numbers of a list with commas."""
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{option} {text} must be {'whole ' if kind is int else ''}numbers with commas between."
        ) from None


def _csv(rows: Sequence[Row]) -> str:
    """A line for each row, below their names."""
    text = StringIO()
    writer = DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _print_tables(rows: Sequence[Row], how: str) -> None:
    """Print medians over the greatest value, at the largest N and with shared directions."""
    n = max(row.n for row in rows)
    random = [row for row in rows if row.n == n and not row.shared]
    shared = [row for row in rows if row.shared]
    output = Console()
    if not output.is_terminal:
        output.width = 100
    output.print(f"medians over the greatest value, N = {n}, {how}; by k/N:", highlight=False)
    output.print(_table(random, lambda row: row.k / n))
    output.print(f"k = {shared[0].k}; by the share of directions in common:", highlight=False)
    output.print(_table(shared, lambda row: row.shared / row.k))
    output.print("--csv, --json and --out have each N, quantiles and means.", highlight=False)


def _table(rows: Sequence[Row], x: Callable[[Row], float]) -> Table:
    """A line for each pair and metric, a column for each x."""
    places = sorted({x(row) for row in rows})
    table = Table("pair", "metric", *(f"{place:.3g}" for place in places), pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for pair, metric in dict.fromkeys((row.pair, row.metric) for row in rows):
        values = {x(row): row for row in rows if (row.pair, row.metric) == (pair, metric)}
        cells = [f"{values[place].median / values[place].greatest:.3f}" for place in places]
        table.add_row(pair, metric, *cells, end_section=metric == [*METRICS][-1])
    return table
