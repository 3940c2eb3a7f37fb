"""What came out of Kronecker-factored methods, by layer and in all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from skerch.analysis.results import KroneckerResults
from skerch.jobs.commands.results import Hessians, columns
from skerch.jobs.config import Config
from skerch.jobs.pipeline.kronecker import count_passes, is_corrected
from skerch.jobs.run_dir import RunDir, StepDir, results_file

FEW = 10  # eigenvectors
FISHERS = {"type2": "expected labels", "mc": "drawn labels", "empirical": "labels of the data"}


def read(path: Path) -> KroneckerResults:
    """The results in a file."""
    return results_file.read(path, KroneckerResults)


def title(config: Config) -> str:
    """What is asked for."""
    asked = config.kronecker
    words = [f"Fisher matrix of {FISHERS[asked.fisher]}"]
    words += [f"{count_passes(config)} passes"] if config.method == "nearest" else []
    if config.method == "autocorrelation" and asked.project:
        words += [f"projected to {asked.project}"]
    words += ["corrected eigenvalues"] if is_corrected(config) else []
    return ", ".join(words)


def tables(config: Config, hessians: Hessians) -> Iterator[Table]:
    """Each Hessian in a row, then a table of the layers of each one."""
    header = "trace", "trace of\nFisher", "error of\nblocks", "error with what\nis between them"
    whole = columns("step", "split", *header)
    for (step, split), each in hessians.items():
        if each is not None:
            estimates = each.exact_trace, each.error, each.whole_error
            whole.add_row(str(step), split, f"{each.trace:.4g}", *map(str, estimates))
    yield whole
    for (step, split), each in hessians.items():
        if each is not None:
            yield _layers(f"step {step}, {split}", config.hessian.dtype, each)
    if config.kronecker.against:
        yield _captured(config.kronecker.against, hessians)


def _layers(title: str, dtype: str, results: KroneckerResults) -> Table:
    """Each layer in a row."""
    numbers = "trace", "mean λ", "largest λ", "condition", "error of\nthe block"
    table = columns("layer", "shape", *numbers)
    table.title, table.title_justify = title, "left"
    name, *others = table.columns
    name.justify, name.overflow = "left", "fold"
    for column in others:
        column.no_wrap = True
    beyond = "> 8e+06" if dtype == "float32" else "> 4e+15"  # what rounding tells
    for layer, error in zip(results.layers, results.each_error, strict=True):
        own, groups, outputs, inputs, *figures, condition = layer
        shape = f"{outputs} x {inputs}" if groups == 1 else f"{groups} x {outputs} x {inputs}"
        cells = [f"{figure:.3g}" for figure in figures]
        cells += [beyond if condition is None else f"{condition:.2g}", str(error)]
        table.add_row(own, shape, *cells)
    return table


def _captured(source: str, hessians: Hessians) -> Table:
    """What each one captures of top eigenspaces: of few, and of the most with a known error."""
    table = columns("step", "split", f"top k\nof {source}", "overlap", "chance", "residual on all")
    for (step, split), each in hessians.items():
        if each is None or not each.overlap:
            continue
        for k in sorted({min(FEW, each.last_known), each.last_known}):
            residual, chance = str(each.captured_residual), f"{each.baseline[k - 1]:.2g}"
            table.add_row(str(step), split, str(k), str(each.captured(k)), chance, residual)
    return table


def lines(run: RunDir, config: Config, hessians: Hessians) -> Iterator[str]:
    """How far nearest has settled; then parameters that are in no layer, and why."""
    changes = [change for each in hessians.values() if each is not None for change in each.changes]
    if changes:
        yield f"settled    the last pass raised ‖S ⊗ A‖ of a layer by {max(changes):.1e} at most"
    reasons = {
        name: reason
        for each in hessians.values()
        if each is not None
        for name, reason in each.uncovered.items()
    }
    for name, reason in reasons.items():
        yield f"uncovered  {name}: {reason}"


def row(directory: StepDir, config: Config, results: Any) -> dict[str, Any]:
    """One Hessian's results as numbers; None where there are none."""
    found = (results.exact_trace, results.error, results.whole_error) if results else ()
    trace, error, whole = found or ((None, None),) * 3
    k = results.last_known if results else 0
    return {
        "parameters": results and results.parameters,
        "covered": results and results.covered,
        "layers": results and len(results.layers),
        "trace": results and results.trace,
        "fisher_trace": trace[0],
        "fisher_trace_error": trace[1],
        "block_error": error[0],
        "block_error_error": error[1],
        "whole_error": whole[0],
        "whole_error_error": whole[1],
        "last_change": max(results.changes, default=None) if results else None,
        "captured": k or None,
        "captured_overlap": results.overlap[k - 1] if k else None,
        "captured_overlap_error": results.overlap_error[k - 1] if k else None,
        "captured_residual": results.residual[0] if k else None,
        "captured_residual_error": results.residual[1] if k else None,
    }
