"""What came out of a sweep: the results of its runs in one table, JSON or CSV."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from skerch.jobs.commands import part, results
from skerch.jobs.config import Config
from skerch.jobs.pipeline.ranges import counted
from skerch.jobs.run_dir import RunDir, command, sweep_file
from skerch.jobs.run_dir.sweep_file import Member

WIDE = 140  # columns of a file with tables


def print_results(
    folder: Path, name: str | None = None, *, json: bool = False, csv: bool = False
) -> None:
    """Print what the runs of a sweep have found side by side, or those of one method's name."""
    every = list(_hessians(folder, name))
    if json or csv:
        results.print_rows([each.row() for each in every], json=json)
        return
    output = Console()
    if not output.is_terminal:
        output.width = WIDE
    groups = defaultdict(list)
    for each in every:
        if each.found is not None:
            groups[each.config.method].append(each)
    for group in groups.values():
        output.print(_side_by_side(group))
    if missing := sum(each.found is None for each in every):
        see = command("status", folder)
        print(f"missing  {missing} of {counted(len(every), 'Hessian')}; see: {see}")


@dataclass(frozen=True)
class _Hessian:
    """What a run of a sweep has found of a Hessian."""

    member: Member
    config: Config
    step: int
    split: str
    found: Any  # None where it has found nothing yet

    def row(self) -> dict[str, Any]:
        """It as numbers, after the values of the run."""
        name, run = self.member.name, self.member.run
        directory = RunDir(self.config.run_dir).step(name, self.step, self.split)
        own: results.Results = part.of(self.config, "results")
        place = {"name": name, "step": self.step, "split": self.split}
        numbers = own.row(directory, self.config, self.found)
        return {"run": run, **self.member.values, **place, **numbers}


def _hessians(folder: Path, name: str | None) -> Iterator[_Hessian]:
    """The Hessians of each run of a sweep, or of those of one method's name."""
    for member in sweep_file.read(folder):
        if name in (None, member.name):
            run = RunDir(folder / member.run)
            config = run.load(member.name)
            for (step, split), found in results.found(run, config).items():
                yield _Hessian(member, config, step, split, found)


def _side_by_side(group: Sequence[_Hessian]) -> Table:
    """The first table of one method's results, with the values of each run before the step."""
    numbered = {(number, each.split): each.found for number, each in enumerate(group)}
    own: results.Results = part.of(group[0].config, "results")
    table = next(iter(own.tables(group[0].config, numbered)))  # as if the numbers were steps
    keys = list(dict.fromkeys(key for each in group for key in each.member.values))
    heads = [key.replace(".", ".\n") for key in keys]
    whole = results.columns(*heads, *(str(column.header) for column in table.columns))
    for number, *cells in zip(*(column.cells for column in table.columns), strict=True):
        each = group[int(str(number))]
        values = [sweep_file.text(each.member.values[key]) for key in keys]
        whole.add_row(*values, str(each.step), *map(str, cells))
    return whole
