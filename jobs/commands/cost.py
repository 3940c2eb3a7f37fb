"""What a run cost, as tables have it, and what to ask for next time, as a cluster file has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from skerch.jobs.launchers.slurm.cost import Proposal, StageCost

Column = tuple[str, list[str]]  # a heading, and a cell for each stage


def columns(costs: Sequence[StageCost], asked: bool) -> list[Column]:
    """The columns of a table; with `asked` also what was asked, beside what of it was used."""
    found = [
        ("stage", [each.stage for each in costs]),
        ("tasks", [str(each.tasks) for each in costs]),
        ("attempts", [str(each.attempts) for each in costs]),
        ("CPU\nhours", [_figure(each.cpu_hours) for each in costs]),
        ("asked", [_figure(each.cpu_hours_asked) for each in costs]),
        ("used", [_percent(each.cpu_efficiency) for each in costs]),
        ("GPU\nhours", [_figure(each.gpu_hours or None) for each in costs]),
        ("GiB", [_figure(each.memory, 1024) for each in costs]),
        ("asked", [_figure(each.memory_asked, 1024) for each in costs]),
        ("used", [_percent(each.memory_efficiency) for each in costs]),
        ("longest,\nmin", [_figure(each.seconds, 60) for each in costs]),
        ("asked", [_figure(each.seconds_asked, 60) for each in costs]),
        ("used", [_percent(each.time_efficiency) for each in costs]),
    ]
    return [(head, cells) for head, cells in found if any(cells) and (asked or head != "asked")]


def table(costs: Sequence[StageCost]) -> Table:
    """What each stage used, and how much that is of what was asked, for a terminal."""
    shown = Table(box=SIMPLE_HEAD, padding=0)
    own = columns(costs, asked=False)
    for heading, _ in own:
        shown.add_column(heading, justify="left" if heading == "stage" else "right")
    for row in zip(*(cells for _, cells in own), strict=True):
        shown.add_row(*row)
    return shown


def _figure(value: float | None, unit: float = 1.0) -> str:
    return "" if value is None else f"{value / unit:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.{0 if value >= 10 else 1}f} %"


def lines(proposed: Proposal) -> Iterator[str]:
    """Lines for an experiment, or without the first for a cluster file."""
    yield "resources:"
    for stage, asked in proposed.items():
        yield f"  {stage}: {{{', '.join(f'{key}: {value}' for key, value in asked.items())}}}"
