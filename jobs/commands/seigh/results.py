"""What came out of sketches: eigenvalues with their digits, the residual, the overlap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rich.table import Table

from skerch.analysis.results import HessianResults
from skerch.estimate import Estimate
from skerch.jobs.commands.results import columns
from skerch.jobs.config import Config
from skerch.jobs.run_dir import RunDir, StepDir, method_name, results_file, rounds_file

Hessians: TypeAlias = Mapping[tuple[int, str], HessianResults | None]  # by step and split


def read(path: Path) -> HessianResults:
    """The analysis of a Hessian."""
    return results_file.read(path, HessianResults)


def title(config: Config) -> str:
    """What is asked for."""
    sketch = config.sketch
    most = "" if sketch.target is None else "at most "
    return f"{sketch.outer} eigenpairs from {most}{sketch.inner} matvecs, {sketch.probes} probes"


def tables(config: Config, hessians: Hessians) -> Iterator[Table]:
    """The leading eigenvalues of each Hessian, and figures of all of it."""
    yield _leading(hessians)
    yield _whole(hessians)


def lines(run: RunDir, config: Config, hessians: Hessians) -> Iterator[str]:
    """Lines on what is to be known of the results."""
    yield from _fewer(config, hessians)
    yield from _asymmetric(hessians)
    yield from ties(hessians)
    yield from gaps(hessians)
    yield from blocks(hessians)
    yield from _targets(run, config, hessians)


def row(directory: StepDir, config: Config, results: HessianResults | None) -> dict[str, Any]:
    """One Hessian's results as numbers; None where there are none."""
    return numbers(results) | _spent(directory, config)


def _leading(hessians: Hessians) -> Table:
    ks = sorted({len(results.overlap) for results in hessians.values() if results})
    overlap = f"overlap (k = {' or '.join(map(str, ks))})"
    headings = ("step", "split", "top eigenvalues", "relative\nresidual", overlap)
    table = columns(*headings)
    for (step, split), results in hessians.items():
        if results:
            table.add_row(str(step), split, *_cells(results))
    return table


def _whole(hessians: Hessians) -> Table:
    """The ends of each spectrum, and figures of all of the Hessian, where they are known."""
    table = columns("step", "split", "λ_max", "λ_min", "negative", "trace", "‖H‖_F")
    for (step, split), results in hessians.items():
        if results and results.extremes and results.norm:
            ends = (end.digits for end in results.extremes)
            negative = f"{results.negative} of {len(results.eigenvalues)}"
            trace = str(Estimate(*results.trace)) if results.trace else "-"
            table.add_row(str(step), split, *ends, negative, trace, Estimate(*results.norm).digits)
    return table


def _cells(results: HessianResults) -> list[str]:
    """Top eigenvalues, residual and overlap, in words."""
    return [top_cell(results), f"{results.relative_residual:.2%}", overlap_cell(results)]


def top_cell(results: HessianResults) -> str:
    """The first eigenvalues, in words."""
    return ", ".join(map(results.eigenvalue, range(min(3, len(results.eigenvalues)))))


def overlap_cell(results: HessianResults) -> str:
    """The overlap, in words."""
    distance = results.distance
    off, overlap = results.last_overlap_error, results.overlap[-1]
    known = f"{overlap:.4f}" if off is None else Estimate(overlap, off).digits
    sigmas = "" if distance is None else f", {distance:+.1f} σ"
    return f"{known}, {results.multiple:.2f} × k/N{sigmas}"


def numbers(results: HessianResults | None) -> dict[str, Any]:
    """Results as numbers; None where there are none."""
    spectrum = results if results and results.residual else None
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
        "block_diagonal": results and results.block_diagonal,
        "trace": trace[0],
        "trace_error": trace[1],
        "norm": norm[0],
        "norm_error": norm[1],
        "relative_residual": spectrum and spectrum.relative_residual,
        "overlap": results and results.overlap[-1],
        "overlap_error": results and results.last_overlap_error,
        "chance": results and results.baseline[-1],
        "sigmas_from_chance": results and results.distance,
        "tied_in_mask": within,
        "tied_in_all": alike,
    }


def _fewer(config: Config, hessians: Hessians) -> Iterator[str]:
    """A line on each Hessian that has not as many eigenpairs as are asked for."""
    for (step, split), results in hessians.items():
        if results and len(results.eigenvalues) < config.sketch.outer:
            there = f"{len(results.eigenvalues)} of {config.sketch.outer} eigenpairs"
            yield f"fewer    step {step} {split}: {there}"


def _asymmetric(hessians: Hessians) -> Iterator[str]:
    """A line on each Hessian whose products were not those of a symmetric matrix."""
    for (step, split), results in hessians.items():
        if results and results.asymmetry > results.rounding:
            yield (
                f"doubt    step {step} {split}: products are symmetric to "
                f"{results.asymmetry:.0e} only, where rounding explains {results.rounding:.0e}; "
                "see: python -m skerch check"
            )


def ties(hessians: Hessians) -> Iterator[str]:
    """A line on each step whose mask is one of several of the largest parameters."""
    by_step = {step: results for (step, _), results in hessians.items() if results}
    for step, results in by_step.items():
        if results.tie:
            within, alike = results.tie
            yield (
                f"ties     step {step}: {within} of the mask's {len(results.mask)} parameters are "
                f"any of {alike} that are equally large"
            )


def gaps(hessians: Hessians) -> Iterator[str]:
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


def blocks(hessians: Hessians) -> Iterator[str]:
    """A line on how much of the decompositions is block-diagonal by module."""
    held = [results.block_diagonal for results in hessians.values() if results and results.modules]
    known = sorted(share for share in held if share is not None)
    if known:
        least, most = f"{known[0]:.0%}", f"{known[-1]:.0%}"
        shares = least if least == most else f"{least} to {most}"
        yield f"blocks   the modules' diagonal blocks hold {shares} of ‖H_k‖²"


def _spent(directory: StepDir, config: Config) -> dict[str, Any]:
    """The matvecs of a Hessian, and whether the target is reached; None where there is none."""
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
