"""What came out of lanczos, trace and density: with the digits that are vouched for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from skerch.analysis.results import DensityResults, LanczosResults, TraceResults
from skerch.estimate import Estimate
from skerch.jobs.commands.results import Hessians, columns
from skerch.jobs.commands.seigh.results import gaps, numbers, overlap_cell, ties, top_cell
from skerch.jobs.config import Config
from skerch.jobs.config.pairs import source_of
from skerch.jobs.run_dir import RunDir, StepDir, results_file

KINDS = {"lanczos": LanczosResults, "trace": TraceResults, "density": DensityResults}
ENDS = {"LM": "largest in magnitude", "LA": "largest", "SA": "smallest"}


def read(path: Path) -> Any:
    """The results of the method that a file is named for."""
    return results_file.read(path, KINDS[path.stem])


def title(config: Config) -> str:
    """What is asked for."""
    lanczos, trace, density = config.lanczos, config.trace, config.density
    most = "at most " if trace.tol else ""
    words = {
        "lanczos": f"the {lanczos.k} eigenvalues {ENDS[lanczos.which]}, to {lanczos.tol:g}",
        "trace": f"{trace.estimator}, {most}{trace.products} products",
        "density": f"{density.runs} runs of {density.steps} products",
    }
    source = source_of(config)
    return words[config.method] + (f", deflated by {source}" if source else "")


def tables(config: Config, hessians: Hessians) -> Iterator[Table]:
    """Each Hessian in a row."""
    found = {hessian: each for hessian, each in hessians.items() if each is not None}
    if config.method == "lanczos":
        yield _pairs(found)
    elif config.method == "trace":
        yield _traces(found)
    else:
        yield _densities(found)


def lines(run: RunDir, config: Config, hessians: Hessians) -> Iterator[str]:
    """Lines on pairs that have not converged, on ties and on the overlap's error."""
    if config.method != "lanczos":
        return
    yield from ties(hessians)
    yield from gaps(hessians)
    for (step, split), each in hessians.items():
        if each is not None and not all(each.converged):
            lacking = len(each.converged) - sum(each.converged)
            yield (
                f"lanczos  step {step} {split}: {lacking} of {len(each.converged)} pairs have not "
                f"converged to tol={config.lanczos.tol:g} in {each.products} products; raise "
                "lanczos.max_products or lanczos.tol, under another name"
            )


def row(directory: StepDir, config: Config, results: Any) -> dict[str, Any]:
    """One Hessian's results as numbers; None where there are none."""
    spent = {"matvecs": results and results.products}
    known = {"parameters": results and results.parameters}
    if config.method == "trace":
        value, error = results.trace if results else (None, None)
        found = {"trace": value, "trace_error": error, "deflated": results and results.deflated}
    elif config.method == "density":
        unknown = None, None
        least, largest = results.ends if results else unknown
        below = results.share(-math.inf, -results.sigma) if results else unknown
        above = results.share(results.sigma) if results else unknown
        found = {
            "eigenvalue_min": least,
            "eigenvalue_max": largest,
            "sigma": results and results.sigma,
            "share_below": below[0],
            "share_below_error": below[1],
            "share_above": above[0],
            "share_above_error": above[1],
            "atoms": results and len(results.atoms),
        }
    else:
        worst = results and max(results.pair_residual)
        found = numbers(results) | {"pair_residual": worst}
        found |= {"converged": results and sum(results.converged)}
    return known | found | spent


def _pairs(found: Mapping[tuple[int, str], LanczosResults]) -> Table:
    table = columns("step", "split", "eigenvalues", "‖Aw - λw‖\nat most", "overlap", "products")
    for (step, split), each in found.items():
        worst, overlap = f"{max(each.pair_residual):.1e}", overlap_cell(each)
        table.add_row(str(step), split, top_cell(each), worst, overlap, f"{each.products:,}")
    return table


def _traces(found: Mapping[tuple[int, str], TraceResults]) -> Table:
    table = columns("step", "split", "trace", "pairs deflated", "products")
    for (step, split), each in found.items():
        pairs, products = f"{each.deflated:,}", f"{each.products:,}"
        table.add_row(str(step), split, str(each.estimate), pairs, products)
    return table


def _densities(found: Mapping[tuple[int, str], DensityResults]) -> Table:
    headings = ("eigenvalues", "below -σ, %", "above σ, %", "σ", "atoms", "products")
    table = columns("step", "split", *headings)
    for (step, split), each in found.items():
        least, most = each.ends
        below, above = each.share(-math.inf, -each.sigma), each.share(each.sigma)
        table.add_row(
            str(step),
            split,
            f"{least:.3g} to {most:.3g}",
            *(str(Estimate(100 * share, 100 * error)) for share, error in (below, above)),
            f"{each.sigma:.2g}",
            f"{len(each.atoms):,}",
            f"{each.products:,}",
        )
    return table
