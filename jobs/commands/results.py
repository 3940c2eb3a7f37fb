"""What came out of a run: as a table, JSON or CSV."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from csv import DictWriter
from itertools import product
from json import dumps
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from skerch.analysis.results import HessianResults
from skerch.estimate import Estimate
from skerch.jobs import pipeline
from skerch.jobs.config import Config
from skerch.jobs.config.methods import METHODS
from skerch.jobs.pipeline import task_log
from skerch.jobs.run_dir import RunDir, command, method_name, overlap_file, rounds_file

Hessians: TypeAlias = Mapping[tuple[int, str], HessianResults | None]  # by step and split


def found(run: RunDir, config: Config, every: bool = True) -> Hessians:
    """What a method's Hessians have come to, by step and split; None for one that is missing.

    It is `every` one that the run has, or those that the config asks for.
    """
    asked = product(config.training.record_steps, config.hessian.splits)
    hessians = run.hessians(config) if every else asked
    paths = {hessian: run.step(method_name(config), *hessian).overlap for hessian in hessians}
    return {key: overlap_file.read(path) if path.exists() else None for key, path in paths.items()}


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
        | _row(results)
        | _spent(run, config, step, split)
        for config in configs
        for (step, split), results in found(run, config).items()
    ]
    if json:
        print(dumps(rows, indent=1))
    else:
        writer = DictWriter(sys.stdout, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def print_table(config: Config, every: bool = False) -> None:
    """Print each Hessian's results in a row, what is missing, times, and where files are.

    It is of those that the config asks for, or of `every` one that the run has.
    """
    run, name = RunDir(config.run_dir), method_name(config)
    method, sketch = METHODS[config.method], config.sketch
    hessians = found(run, config, every)
    ks = sorted({len(results.overlap) for results in hessians.values() if results})
    overlap = f"overlap (k = {' or '.join(map(str, ks))})"
    headings = ("step", "split", "top eigenvalues", "relative\nresidual", overlap)
    table = _table(*headings)
    for (step, split), results in hessians.items():
        if results:
            table.add_row(str(step), split, *_cells(results))
    output = Console()
    if not output.is_terminal:
        output.width = 100  # a file has no columns to fold at
    lines = [
        *_asymmetric(hessians),
        *_ties(hessians),
        *_gaps(hessians),
        *_targets(run, config, hessians),
        *_missing(run, config, hessians),
        *_times(config, run),
        f"files    {run.method(name)}",
        f"figures  {run.figures}",
    ]
    title = name
    if "sketch" in method.sections:
        most = "" if sketch.target is None else "at most "
        title += f": {sketch.outer} eigenpairs from {most}{sketch.inner} matvecs, "
        title += f"{sketch.probes} probes"
    output.print(title, markup=False, highlight=False, soft_wrap=True)
    for each in filter(lambda each: each.row_count, (table, _whole(hessians))):
        output.print(each)
    for line in lines:
        output.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(*headings: str) -> Table:
    table = Table(*headings, pad_edge=False)  # so that it fits into 80 columns
    for column in table.columns:
        column.justify = "left" if column.header == "split" else "right"
    return table


def _whole(hessians: Hessians) -> Table:
    """The ends of each spectrum, and figures of all of the Hessian, where they are known."""
    table = _table("step", "split", "λ_max", "λ_min", "negative", "trace", "‖H‖_F")
    for (step, split), results in hessians.items():
        if results and results.extremes and results.norm:
            ends = (end.digits for end in results.extremes)
            negative = f"{results.negative} of {len(results.eigenvalues)}"
            trace = str(Estimate(*results.trace)) if results.trace else "-"
            table.add_row(str(step), split, *ends, negative, trace, Estimate(*results.norm).digits)
    return table


def _cells(results: HessianResults) -> list[str]:
    """Top eigenvalues, residual and overlap, in words."""
    distance = results.distance
    off, overlap = results.last_overlap_error, results.overlap[-1]
    known = f"{overlap:.4f}" if off is None else Estimate(overlap, off).digits
    sigmas = "" if distance is None else f", {distance:+.1f} σ"
    return [
        ", ".join(map(results.eigenvalue, range(min(3, len(results.eigenvalues))))),
        f"{results.relative_residual:.2%}",
        f"{known}, {results.multiple:.2f} × k/N{sigmas}",
    ]


def _row(results: HessianResults | None) -> dict[str, Any]:
    """The same as numbers; None where there are none."""
    top = [*(results.eigenvalues if results else ()), None, None, None]
    off = [*(results.eigenvalue_bound if results else ()), None, None, None]
    within, alike = (results and results.tie) or (None, None)
    unknown = None, None
    largest, least = (results and results.extremes) or (unknown, unknown)
    trace, norm = (results and results.trace) or unknown, (results and results.norm) or unknown
    return {
        "parameters": results and results.parameters,
        "k": results and len(results.overlap),
        **{f"eigenvalue_{i + 1}": top[i] for i in range(3)},
        **{f"eigenvalue_{i + 1}_bound": off[i] for i in range(3)},
        "eigenvalue_max": largest[0],
        "eigenvalue_max_bound": largest[1],
        "eigenvalue_min": least[0],
        "eigenvalue_min_bound": least[1],
        "negative": results and results.negative,
        "trace": trace[0],
        "trace_error": trace[1],
        "norm": norm[0],
        "norm_error": norm[1],
        "relative_residual": results and results.relative_residual,
        "overlap": results and results.overlap[-1],
        "overlap_error": results and results.last_overlap_error,
        "chance": results and results.baseline[-1],
        "sigmas_from_chance": results and results.distance,
        "tied_in_mask": within,
        "tied_in_all": alike,
    }


def _asymmetric(hessians: Hessians) -> Iterator[str]:
    """A line on each Hessian whose products were not those of a symmetric matrix."""
    for (step, split), results in hessians.items():
        if results and results.asymmetry > results.rounding:
            yield (
                f"doubt    step {step} {split}: products are symmetric to "
                f"{results.asymmetry:.0e} only, where rounding explains {results.rounding:.0e}; "
                "see: python -m skerch check"
            )


def _ties(hessians: Hessians) -> Iterator[str]:
    """A line on each step whose mask is one of several of the largest parameters."""
    by_step = {step: results for (step, _), results in hessians.items() if results}
    for step, results in by_step.items():
        if results.tie:
            within, alike = results.tie
            yield (
                f"ties     step {step}: {within} of the mask's {len(results.mask)} parameters are "
                f"any of {alike} that are equally large"
            )


def _gaps(hessians: Hessians) -> Iterator[str]:
    """A line on the Hessians whose overlap has no error, and up to which k it has one."""
    lacking = []
    for (step, split), results in hessians.items():
        if results and results.overlap_error and results.last_overlap_error is None:
            known = [k for k, error in enumerate(results.overlap_error, 1) if error is not None]
            lacking.append(f"step {step} {split} (k ≤ {known[-1] if known else 0} has one)")
    if lacking:
        yield (
            "overlap  has no error bar where eigenvalues k and k + 1 are not told apart: "
            f"{', '.join(lacking)}"
        )


def _spent(run: RunDir, config: Config, step: int, split: str) -> dict[str, Any]:
    """The matvecs of a Hessian, and whether the target is reached; None where there is none."""
    directory = run.step(method_name(config), step, split)
    if not directory.eigh.exists():
        return {"matvecs": None, "target_reached": None}
    *_, last = (None, *rounds_file.judgements(directory, config.sketch).values())
    spent = sum(each.columns for each in rounds_file.rounds(directory, config.sketch))
    return {"matvecs": spent, "target_reached": last and last.reached}


def _targets(run: RunDir, config: Config, hessians: Hessians) -> Iterator[str]:
    """A line on each Hessian whose rounds were judged against the target."""
    sketch = config.sketch
    for step, split in hessians:
        directory = run.step(method_name(config), step, split)
        *_, last = (None, *rounds_file.judgements(directory, sketch).values())
        if last is None:
            continue
        how = f"each pair's ‖Hw - λw‖ is at most {last.pairs:.1g} |λ|"
        if "residual" in (sketch.target or ()):
            how = "nothing can be said of the best residual"
            if last.residual is not None:
                how = f"the residual is about {last.residual:.3f} of the best"
        if last.reached:
            words = f"reached with {last.matvecs} of {sketch.inner} matvecs"
        elif last.matvecs < sketch.inner:
            words = f"not reached yet with {last.matvecs} matvecs"
        else:
            words = f"not reached within inner={sketch.inner}: raise sketch.inner"
        yield f"target   step {step} {split}: {words} ({how})"


def _missing(run: RunDir, config: Config, hessians: Hessians) -> Iterator[str]:
    """A line on what is not there, if anything is not."""
    name, result = method_name(config), METHODS[config.method].result
    there = {each: (run.step(name, *each).path / result).exists() for each in hessians}
    missing = [f"step {step} {split}" for (step, split), is_there in there.items() if not is_there]
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
