"""Which charts show which results: of one Hessian, against the step, and of the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Any, TypeAlias

from skerch.analysis.report.svg import Chart, Heatmap, Look, Number, Series, Values
from skerch.analysis.results import (
    DensityResults,
    HessianResults,
    KroneckerResults,
    LanczosResults,
    StabilisationResults,
    TraceResults,
)

Hessians: TypeAlias = Mapping[tuple[int, str], Any]  # by step and split; None where there is none
SURE = "may be off by, 95 %"


@singledispatch
def charts_of(results: Any) -> Iterator[Chart]:
    """The charts of one Hessian's results."""
    yield from ()


@charts_of.register
def _(results: HessianResults) -> Iterator[Chart]:
    yield _eigenvalues(results)
    residual = [value / results.residual[0] for value in results.residual]
    ranks = range(len(residual))
    lower, upper = ([math.sqrt(value) for value in bounds] for bounds in results.scree_bounds)
    least, most = _last_residual(results)
    yield Chart(
        "Residual by rank",
        "rank",
        "‖H - H_r‖ / ‖H‖",
        [
            Series("best possible, bounds", ranks, [None] * len(residual), "band", 2, lower, upper),
            Series("sketched, estimate", ranks, residual),
        ],
        log_y=True,
        words=f"At rank {len(residual) - 1} it is {residual[-1]:.3g}, and in 95 of 100 between "
        f"{least:.2g} and {most:.2g}.",
    )
    yield _overlap(results)


@charts_of.register
def _(results: LanczosResults) -> Iterator[Chart]:
    yield _eigenvalues(results)
    index = range(1, len(results.eigenvalues) + 1)
    pairs = list(zip(results.pair_residual, results.eigenvalues, strict=True))
    relative = [residual / abs(value) if value else None for residual, value in pairs]
    yield Chart(
        "Residual by pair",
        "index",
        "‖Aw - λw‖ / |λ|",
        [Series("residual", index, relative, "points")],
        log_y=True,
        words=f"{sum(results.converged)} of {len(relative)} pairs have converged.",
    )
    yield _overlap(results)


@charts_of.register
def _(results: TraceResults) -> Iterator[Chart]:
    n = len(results.samples)
    value, error = results.trace
    shift = value - sum(results.samples) / n if n else 0.0
    index = list(range(1, n + 1))
    ends = [1.0, float(max(n, 2))]
    yield Chart(
        "Trace",
        "sample",
        "trace",
        [
            Series(
                f"trace, {SURE}",
                ends,
                [value] * 2,
                "line",
                0,
                [value - error] * 2,
                [value + error] * 2,
            ),
            Series("samples", index, [sample + shift for sample in results.samples], "points", 2),
        ],
        words=f"{results.estimate} from {results.products} products.",
    )


@charts_of.register
def _(results: DensityResults) -> Iterator[Chart]:
    floor = 1 / (results.parameters * results.sigma * math.sqrt(2 * math.pi)) / 100
    density = [value if value > floor else None for value in results.density]
    yield Chart(
        "Density of eigenvalues",
        "eigenvalue",
        "density",
        [Series("density", list(results.grid), density)],
        log_y=True,
        whole=False,
        words=f"Eigenvalues are seen from {results.ends[0]:.3g} to {results.ends[1]:.3g}.",
    )


@charts_of.register
def _(results: KroneckerResults) -> Iterator[Chart]:
    index = range(1, len(results.layers) + 1)
    yield Chart(
        "Blocks of layers",
        "layer, in the table's order",
        "of its block",
        [
            Series("trace", index, [layer[4] for layer in results.layers], "points", 0),
            Series("largest eigenvalue", index, [layer[6] for layer in results.layers], "down", 1),
        ],
        log_y=True,
    )
    each = results.each_error
    yield Chart(
        "Error of products with each block",
        "layer, in the table's order",
        "relative error",
        [
            Series(
                f"each block, {SURE}",
                index,
                [error.value for error in each],
                "points",
                0,
                [error.value - error.error for error in each],
                [error.value + error.error for error in each],
            )
        ],
        words=f"All blocks at once: {results.error}; with what is between them: "
        f"{results.whole_error}.",
    )
    if results.against:
        k = range(1, len(results.overlap) + 1)
        yield Chart(
            f"Top eigenspaces of {results.against}",
            "k eigenvectors",
            "overlap",
            [
                _shared("approximation", k, results.overlap, results.overlap_error),
                Series("chance, k / N", k, list(results.baseline), "dashed", 3),
            ],
        )


def _eigenvalues(results: HessianResults) -> Chart:
    values = list(results.eigenvalues)
    bound = list(results.eigenvalue_bound)  # none in older files

    def signed(name: str, look: Any, colour: int, wanted: Callable[[float], bool]) -> Series:
        kept = [i for i, value in enumerate(values) if wanted(value)]
        sizes = [abs(values[i]) for i in kept]
        return Series(
            name,
            [i + 1 for i in kept],
            sizes,
            look,
            colour,
            [size - bound[i] for size, i in zip(sizes, kept, strict=True) if bound],
            [size + bound[i] for size, i in zip(sizes, kept, strict=True) if bound],
        )

    series = [
        signed("positive", "up", 0, lambda value: value > 0),
        signed("negative", "down", 1, lambda value: value < 0),
    ]
    return Chart(
        "Eigenvalues",
        "index",
        "|λ|; bars: may be off by, 95 %",
        [each for each in series if each.x],
        log_y=True,
        words=f"The largest is {results.eigenvalue(0)}; {results.negative} of {len(values)} are "
        "negative.",
    )


def _last_residual(results: HessianResults) -> tuple[float, float]:
    """The interval of the residual at the last rank, over ‖H‖; those before are much wider."""
    low, high = (ends[-1] / results.residual[0] for ends in results.residual_bounds)
    return low, high


def _overlap(results: HessianResults) -> Chart:
    k = range(1, len(results.overlap) + 1)
    low, high = results.quantiles
    band = Series("95 % of random masks", results.grid, [None] * len(low), "band", 2, low, high)
    lacking = None in results.overlap_error
    name = "magnitude mask" + (" (no shade: gap not resolved)" if lacking else "")
    others = zip(results.other_masks, results.others, results.other_sizes, strict=True)
    series = [
        *([band] if len(low) else []),
        Series("chance, k / N", k, list(results.baseline), "dashed", 3),
        *(
            [Series("best mask", results.grid, list(results.best), "dashed", 2)]
            * bool(results.best)
        ),
        *(
            Series(f"{mask} mask", results.grid, values, "line", colour)
            for colour, (mask, values, size) in zip((4, 1, 2), others, strict=False)
            if size is None
        ),
        _shared(name, k, results.overlap, results.overlap_error),
    ]
    words = f"At k = {len(k)} it is {results.overlap[-1]:.3g}, {results.multiple:.2f} times k / N."
    for mask, values, size, chance in zip(
        results.other_masks, results.others, results.other_sizes, results.other_chance, strict=True
    ):
        if size is not None and len(values):
            multiple = values[-1] / chance[-1]
            words += f" With {mask}, {size} parameters, {values[-1]:.3g}, {multiple:.2f} × chance."
    return Chart(
        "Overlap with the largest parameters",
        "k eigenvectors, k parameters",
        "overlap",
        series,
        words=words,
    )


def _about(
    name: str,
    x: Sequence[float],
    values: Values,
    errors: Values,
    colour: int = 0,
    look: Look = "line",
) -> Series:
    """A line, shaded as far as it may be off where that is known."""
    low: list[Number] = []
    high: list[Number] = []
    for value, error in zip(values, errors or [None] * len(values), strict=True):
        both = None if value is None or error is None else (value - error, value + error)
        low.append(both and both[0])
        high.append(both and both[1])
    return Series(name, x, list(values), look, colour, low, high)


def _shared(name: str, x: Sequence[float], values: Values, errors: Values) -> Series:
    """Overlaps, which are in [0, 1], however wide their error bars are."""
    line = _about(name, x, values, errors)
    low = [value if value is None else max(0.0, value) for value in line.low]
    high = [value if value is None else min(1.0, value) for value in line.high]
    return replace(line, low=low, high=high)


def against_step(hessians: Hessians) -> Iterator[Chart]:
    """What changes from step to step, a line a split; nothing where there is one step only."""
    found = {key: each for key, each in hessians.items() if isinstance(each, HessianResults)}
    if len({step for step, _ in found}) < 2:
        return
    splits = list(dict.fromkeys(split for _, split in found))

    def chart(title: str, y: str, figures: Mapping[str, Figure]) -> Chart:
        series = []
        for colour, split in enumerate(splits):
            of = {step: each for (step, s), each in found.items() if s == split}
            for number, (name, figure) in enumerate(figures.items()):
                look: Look = "dashed" if number else "line"
                told = _each(of.values(), figure)
                series.append(_about(f"{name} {split}".strip(), list(of), *told, colour, look))
        return Chart(title, "training step", y, series)

    yield chart("Extreme eigenvalues", "λ", {"λ_max": _extreme(1), "λ_min": _extreme(0)})
    for split in splits:
        of = {step: each for (step, s), each in found.items() if s == split}
        series = [
            _about(f"λ_{i + 1}", list(of), *_each(of.values(), _leading(i)), colour=i)
            for i in range(5)
        ]
        yield Chart(f"Leading eigenvalues, {split} split", "training step", "|λ|", series)
    if any(each.trace for each in found.values()):
        yield chart("Trace", "tr H", {"": lambda each: tuple(each.trace or (None, None))})
        yield chart("Norm", "‖H‖_F", {"": lambda each: tuple(each.norm or (None, None))})
    if any(len(each.residual) > 1 for each in found.values()):
        yield chart(
            "Relative residual",
            "‖H - H_k‖ / ‖H‖",
            {"": _residual},
        )
    ratio = chart("Overlap at k over chance", "overlap / (k / N)", {"": _multiple})
    yield replace(ratio, series=[_chance(found), *ratio.series])


Figure: TypeAlias = Callable[[Any], tuple[Number, Number]]  # of results: a number and its error


def _each(results: Iterable[Any], figure: Figure) -> tuple[Values, Values]:
    """A number of each of the results, and their errors."""
    values, errors = zip(*map(figure, results), strict=True)
    return values, errors


def _chance(found: Mapping[tuple[int, str], HessianResults]) -> Series:
    """Where 95 % of random masks are, about: two standard deviations, over their mean."""
    wide: dict[int, float] = {}
    for (step, _), each in found.items():
        here = 1.96 * each.deviation[-1] / each.baseline[-1]
        wide[step] = max(here, wide.get(step, 0.0))
    low, high = [1 - each for each in wide.values()], [1 + each for each in wide.values()]
    return Series("chance, ± 1.96 σ", list(wide), [1.0] * len(wide), "dashed", 2, low, high)


def _extreme(which: int) -> Figure:
    """λ_max for 1 and λ_min for 0 …"""

    def figure(results: HessianResults) -> tuple[Number, Number]:
        both = results.extremes
        return (None, None) if both is None else (both[1 - which].value, both[1 - which].error)

    return figure


def _leading(index: int) -> Figure:
    def figure(results: HessianResults) -> tuple[Number, Number]:
        if index >= len(results.eigenvalues):
            return None, None
        bound = results.eigenvalue_bound[index] if results.eigenvalue_bound else None
        return abs(results.eigenvalues[index]), bound

    return figure


def _residual(results: HessianResults) -> tuple[Number, Number]:
    """The relative residual, and the wider side of its interval."""
    if len(results.residual) < 2:
        return None, None
    low, high = _last_residual(results)
    value = results.relative_residual
    return value, max(high - value, value - low)


def _multiple(results: HessianResults) -> tuple[Number, Number]:
    error = results.last_overlap_error
    return results.multiple, None if error is None else error / results.baseline[-1]


def in_common(results: StabilisationResults) -> Iterator[Heatmap]:
    """Heatmaps of eigenspaces and of masks, at each k."""
    hessians = [f"{step} {split}" for step, split in results.hessians]
    steps = list(map(str, results.steps))
    for i, k in enumerate(results.ks):
        errors = results.eigenspace_errors[i]
        off = [errors[a][b] for a in range(len(errors)) for b in range(a)]
        known = [error for error in off if error is not None]
        words = f"Two random ones have {results.chance[i]:.2g} in common on average."
        if known:
            words += f" Off by at most {max(known):.2g}."
        if len(known) < len(off):
            words += (
                f" {len(off) - len(known)} of {len(off)} pairs have no error bar, as eigenvalues "
                f"{k} and {k + 1} of one of the two are not told apart."
            )
        yield Heatmap(
            f"Overlap of top eigenspaces, k = {k}", hessians, results.eigenspaces[i], errors, words
        )
    for i, k in enumerate(results.ks if len(steps) > 1 else ()):
        yield Heatmap(
            f"IoU of magnitude masks, k = {k}",
            steps,
            results.masks[i],
            words=f"Two random ones have about {results.mask_chance[i]:.2g}.",
        )


def training_charts(log: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Loss and accuracy of each split against the step."""
    for quantity in ("loss", "accuracy"):
        splits = dict.fromkeys(
            split
            for record in log
            for split, figures in record.items()
            if split != "step" and quantity in figures
        )
        series = []
        for colour, split in enumerate(splits):
            points = [
                (record["step"], record[split][quantity])
                for record in log
                if quantity in record.get(split, {})
            ]
            steps, values = zip(*points, strict=True)
            series.append(Series(split, steps, values, "line", colour))
        if series:
            yield Chart(quantity.capitalize(), "training step", quantity, series)
