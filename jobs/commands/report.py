"""One page that shows runs side by side: what was asked, what was found, and what it took."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table as Printed

from skerch.analysis.report import Report, Section, Shown, Table, render
from skerch.analysis.report.charts import against_step, charts_of, in_common, training_charts
from skerch.analysis.report.page import Choice, Part
from skerch.analysis.report.svg import Chart, Heatmap, table_of
from skerch.analysis.results import HessianResults
from skerch.errors import SkerchError
from skerch.files import write_atomically
from skerch.jobs.commands import cost, part
from skerch.jobs.commands.results import Results, found
from skerch.jobs.commands.stabilisation import stabilisation
from skerch.jobs.config import Config, method_name
from skerch.jobs.launchers.slurm import journal
from skerch.jobs.launchers.slurm.accounting import starts
from skerch.jobs.launchers.slurm.cost import attempts, by_stage, proposal
from skerch.jobs.launchers.slurm.observed import PATIENCE, Submitted
from skerch.jobs.pipeline import task_log
from skerch.jobs.pipeline.ranges import format_ranges
from skerch.jobs.run_dir import RunDir, provenance

MOST_NAMED = 3  # runs in the page's title


class LeftOutError(SkerchError):
    """A page without a run that is damaged; the message names both."""


@dataclass(frozen=True)
class Reported:
    """One method's results in a run, and what they are called on the page."""

    run: RunDir
    config: Config
    name: str
    first: bool  # of its run: the training is shown with it


def write_report(runs: Sequence[RunDir], out: Path | None = None) -> Path:
    """Write the page, and beside it a CSV file of each chart; returns the page's path.

    Of one run it is `report.html` in its directory, and the CSV files are in `figures`.

    Raises SkerchError where a run cannot be shown; where others can, LeftOutError once the page of
    these is written, which says so, too.
    """
    if out is None:
        out = runs[0].report if len(runs) == 1 else Path(runs[0].report.name).absolute()
    alone = len(runs) == 1 and out == runs[0].report
    folder = runs[0].figures if alone else out.with_name(f"{out.stem}_files")
    reported, refused = _reported(runs)
    several = len(reported) + len(refused) > 1
    files: dict[str, str] = {}

    def shown(each: Reported, chart: Chart | Heatmap, *place: str) -> Shown:
        words = [*([each.name] if several else [method_name(each.config)]), *place, chart.title]
        stem = re.sub(r"[^\w.]+", "-", "-".join(words)).strip("-").lower()
        name, number = f"{stem}.csv", 1
        while name in files:  # as of runs a+b and a-b
            number += 1
            name = f"{stem}-{number}.csv"
        files[name] = table_of(chart)
        return Shown(chart, f"{folder.name}/{name}")

    names, lead, columns = [], [], []
    for each in reported:
        others = len(files)
        try:
            told = _lead(each)
            columns.append([list(parts(each, partial(shown, each))) for *_, parts in SECTIONS])
        except SkerchError as error:
            refused.append((each.name, error))
            for name in list(files)[others:]:
                del files[name]
            continue
        names.append(each.name)
        lead.append(told)
    if not names:
        raise refused[0][1]
    lead += [f"{name} is left out: {error}" for name, error in refused]
    sections = [
        Section(name, title, words, [column[index] for column in columns])
        for index, (name, title, words, _) in enumerate(SECTIONS)
    ]
    title = " and ".join(run.path.name for run in runs[:MOST_NAMED])
    if len(runs) > MOST_NAMED:
        title += f" and {len(runs) - MOST_NAMED} more"
    page = render(Report(title, names, lead, sections))
    for name, text in files.items():
        write_atomically(folder / name, partial(_write, text))
    write_atomically(out, partial(_write, page))
    if refused:
        left_out = " ".join(f"{name} is left out: {error}" for name, error in refused)
        raise LeftOutError(f"{out} is written. {left_out}")
    return out


def print_report(runs: Sequence[RunDir], out: Path | None = None) -> None:
    """Write the page, and say where it is; or why not, as of damaged results."""
    try:
        print(f"report   {write_report(runs, out)}")
    except LeftOutError as error:
        print(f"report   {error}")
    except SkerchError as error:
        print(f"report   not written: {error}")


def _write(text: str, temporary: Path) -> None:
    temporary.write_text(text, encoding="utf-8")


def _reported(runs: Sequence[RunDir]) -> tuple[list[Reported], list[tuple[str, SkerchError]]]:
    """Every method of every run, the names told apart; and the runs whose configs are refused."""
    names = [run.path.name for run in runs]
    every: list[Reported] = []
    refused: list[tuple[str, SkerchError]] = []
    for run in runs:
        twice = names.count(run.path.name) > 1
        called = str(run.path) if twice else run.path.name
        try:
            configs = [run.load(name) for name in run.methods] or [run.load()]
        except SkerchError as error:
            refused.append((called, error))
            continue
        for index, config in enumerate(configs):
            method = method_name(config)
            name = called if len(configs) == 1 else f"{called}, {method}"
            every.append(Reported(run, config, name, first=not index))
    return every, refused


def _lead(each: Reported) -> str:
    """A sentence: what was asked, and how much of it is there."""
    hessians = found(each.run, each.config)
    there = sum(results is not None for results in hessians.values())
    sizes = [getattr(results, "parameters", 0) for results in hessians.values() if results]
    size = f" N = {max(sizes):,} parameters;" if any(sizes) else ""
    own: Results = part.of(each.config, "results")
    return (
        f"{each.name}: {own.title(each.config)};{size} {there} of {len(hessians)} Hessians "
        "are there."
    )


def _results(each: Reported, shown: Any) -> Iterator[Part]:
    own: Results = part.of(each.config, "results")
    hessians = found(each.run, each.config)
    for table in own.tables(each.config, hessians):
        if table.row_count:
            yield _as_text(table)


def _as_text(table: Printed) -> Table:
    """A table of the terminal."""
    headings = [str(column.header) for column in table.columns]
    rows = list(
        zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)
    )
    return Table(headings, rows, str(table.title or ""))


def _training(each: Reported, shown: Any) -> Iterator[Part]:
    if not (each.first and each.run.log.exists()):
        return
    records, odd = [], []
    for number, line in enumerate(each.run.log.read_bytes().splitlines(), 1):
        try:
            records.append(_logged(json.loads(line)))
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
            odd.append(number)
    yield from map(shown, training_charts(records))
    if odd:
        yield (
            f"{each.run.log}: line{'s' * (len(odd) > 1)} {format_ranges(odd)} left out, as no "
            "training logs that; delete the file, and run writes it again."
        )


def _logged(record: dict[str, Any]) -> dict[str, Any]:
    """What a training logged at a step; of something else an error of any kind."""
    numbers = {"step": int(record.pop("step"))}
    return numbers | {
        split: {name: float(value) for name, value in figures.items()}
        for split, figures in record.items()
    }


def _hessians(each: Reported, shown: Any) -> Iterator[Part]:
    for (step, split), results in found(each.run, each.config).items():
        charts = [] if results is None else list(charts_of(results))
        if charts:
            place = f"step-{step:06d}-{split}"
            parts = [shown(chart, place) for chart in charts]
            yield Choice(step, split, f"Step {step}, {split} split", parts)


def _steps(each: Reported, shown: Any) -> Iterator[Part]:
    yield from map(shown, against_step(found(each.run, each.config)))


def _stabilisation(each: Reported, shown: Any) -> Iterator[Part]:
    """Heatmaps of what Hessians and masks have in common; nothing where there is one Hessian."""
    results = found(each.run, each.config).values()
    if sum(isinstance(found, HessianResults) for found in results) > 1:
        common = stabilisation(each.run, each.config)
        if common is not None:
            yield from map(shown, in_common(common))


def _health(each: Reported, shown: Any) -> Iterator[Part]:
    hessians = found(each.run, each.config)
    rows = [
        (
            str(step),
            split,
            f"{results.asymmetry:.1e} of {results.rounding:.0e}",
            "in doubt" if results.asymmetry > results.rounding else "symmetric",
            f"{max(results.eigenvalue_bound):.2g}" if len(results.eigenvalue_bound) else "unknown",
        )
        for (step, split), results in hessians.items()
        if isinstance(results, HessianResults)
    ]
    if rows:
        heads = (
            "step",
            "split",
            "asymmetry,\nof what rounding explains",
            "products",
            "largest error bar\nof an eigenvalue",
        )
        yield Table(heads, rows)
    own: Results = part.of(each.config, "results")
    said = [line.split(maxsplit=1) for line in own.lines(each.run, each.config, hessians)]
    failed = [
        (task, record["error"])
        for task, record in task_log.records(each.run).items()
        if record["error"] is not None and each.first
    ]
    if said:
        yield Table(("of", "what is to be known"), said)
    if failed:
        yield Table(("task", "failed with"), failed, "Tasks that failed last")


def _cost(each: Reported, shown: Any) -> Iterator[Part]:
    if not each.first:
        return
    known = Submitted(journal.submissions(each.run), {})
    tried = attempts(each.run, known, starts(known.history, PATIENCE))
    if columns := cost.columns(by_stage(tried), asked=True):
        rows = list(zip(*(cells for _, cells in columns), strict=True))
        yield Table([heading for heading, _ in columns], rows, "Of all attempts")
    if proposed := proposal(tried):
        yield "# for the next submission, or resources=auto\n" + "\n".join(cost.lines(proposed))


def _asked(each: Reported, shown: Any) -> Iterator[Part]:
    rows = list(_circumstances(each))
    if rows:
        yield Table(("", "of the first Hessian"), rows)
    path = each.run.hessian_config(method_name(each.config))
    yield (path if path.exists() else each.run.config).read_text(encoding="utf-8")


def _circumstances(each: Reported) -> Iterator[tuple[str, str]]:
    """Versions, machine and what else decides the bits, by the first Hessian's manifest."""
    folder = each.run.method(method_name(each.config))
    for path in sorted(pipeline_manifests(each, folder)):
        with suppress(SkerchError):
            told = provenance.read(path)
            yield from ((name, str(version)) for name, version in told.versions.items())
            for key in ("device", "processor", "threads", "strategy", "chunk_size"):
                yield key.replace("_", " "), str(getattr(told, key))
            yield "parameters' hash", told.parameters_hash[:16]
            yield "datapoints' hash", told.datapoints_hash[:16]
            return


def pipeline_manifests(each: Reported, folder: Path) -> Iterator[Path]:
    """The manifests of a method."""
    from skerch.jobs.config.methods import METHODS

    return METHODS[each.config.method].manifests_in(folder, "step-*/")


SECTIONS = (
    ("results", "What was found", "", _results),
    (
        "steps",
        "From step to step",
        "Bars and shades hold in 95 of 100. Chance is k / N.",
        _steps,
    ),
    (
        "stabilisation",
        "What stays",
        "Overlap of the top eigenspaces of every two Hessians, and the share that magnitude masks "
        "of every two steps have in common (IoU).",
        _stabilisation,
    ),
    (
        "hessians",
        "Each Hessian",
        "Point at a chart, or use the arrow keys, to read values; drag, or press + and -, to zoom; "
        "a double click or 0 shows all.",
        _hessians,
    ),
    ("training", "Training", "", _training),
    ("health", "Can it be relied on?", "", _health),
    ("cost", "Time and cost", "", _cost),
    ("asked", "What was run", "", _asked),
)
