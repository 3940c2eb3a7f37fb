"""Figures of results that are handed in.

A `…_panel` draws one subject onto given axes; a `…_figure` returns a whole `Figure`, without the
global state of pyplot, for any thread or headless machine; `save` writes it. Colours
are those of Okabe and Ito, told apart by every kind of colour vision, and never alone: signs differ
in marker, splits in line style. Arrays may be tensors, NumPy arrays or lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.markers import CARETDOWNBASE, CARETUPBASE
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike
from torch import Tensor

from skerch.analysis.overlap import OverlapResult
from skerch.analysis.results import (
    DensityResults,
    ExactResults,
    HessianResults,
    KroneckerResults,
    LanczosResults,
    TraceResults,
)
from skerch.analysis.synthetic import SHARED_RATIO, Row
from skerch.errors import SkerchError
from skerch.files import write_atomically

Values: TypeAlias = "Tensor | ArrayLike"

BLUE, VERMILLION, GREY, BLACK = "#0072B2", "#D55E00", "#8C8C8C", "#1A1A1A"
PANEL_INCHES = (4.2, 3.6)  # inches
LETTER = 0.7  # the width of a letter of a title over its size, at most on average
METRIC_LOOKS: dict[str, tuple[str, Any]] = {  # of skerch.analysis.grassmann
    "overlap": (BLUE, "-"),
    "iou": ("#56B4E9", "--"),
    "projection_frobenius": (VERMILLION, "-"),
    "chordal_frobenius": ("#009E73", "--"),
    "geodesic": ("#E69F00", "-."),
    "projection_2": ("#CC79A7", "-"),
    "chordal_2": (GREY, (0, (5, 5))),
    "fubini_study": (BLACK, ":"),
}
LEGEND: dict[str, Any] = {"fontsize": 9, "frameon": False}


def eigenvalue_panel(
    axes: Axes, eigenvalues: Values, exact: Values | None = None, bound: Values | None = None
) -> None:
    """Draw |λ_i| of eigenvalues (k,) against i = 1 … k, on a log scale, signs told apart.

    The marker of a positive eigenvalue points up and that of a negative one down, so that neither
    hides the other. Zeros have no place on the scale and are left out. The first k `exact`
    eigenvalues, sorted by magnitude too, are a line on top. The plane is shaded as far as each may
    be off by its `bound` (k,), if there are such.
    """
    values = _array(eigenvalues)
    index = np.arange(1, len(values) + 1)
    if bound is not None:
        off, size = _array(bound), np.abs(values)
        look: dict[str, Any] = {"color": GREY, "alpha": 0.3, "linewidth": 0}
        look["label"] = "may be off by, 95 %"
        axes.fill_between(index, size - off, size + off, **look)
    size = float(np.clip(500 / max(1, len(values)), 3.5, 5))
    for name, chosen, colour, marker in (
        ("positive", values > 0, BLUE, CARETUPBASE),
        ("negative", values < 0, VERMILLION, CARETDOWNBASE),
    ):
        if chosen.any():
            axes.plot(
                index[chosen],
                np.abs(values[chosen]),
                color=colour,
                linestyle="",
                marker=marker,
                markersize=size,
                markeredgewidth=0,
                label=name,
            )
    if exact is not None:
        _exact(axes, index, np.abs(_array(exact)))
    _log_scale(axes, "y", np.abs(values))
    _whole_numbers(axes)
    _style(axes, "Eigenvalues", "index, by decreasing magnitude", "magnitude of the eigenvalue")
    axes.legend(**LEGEND)


def scree_panel(
    axes: Axes,
    residual: Values,
    lower: Values | None = None,
    upper: Values | None = None,
    exact: Values | None = None,
) -> None:
    """Draw the relative residual ‖H - H_r‖_F / ‖H‖_F, (k + 1,), against the rank r = 0 … k.

    The area between `lower` and `upper` (k + 1,) is shaded: bounds of the best residual that a
    matrix of rank r can have, relative too (the scree; TYUC 2019, 6.5). As the lower one falls to 0
    at rank k, the scale ends at half the least residual. The residual (k + 1,) of the `exact`
    eigenpairs is a line on top.
    """
    values = _array(residual)
    rank = np.arange(len(values))
    if lower is not None and upper is not None:
        axes.fill_between(
            rank,
            _array(lower),
            _array(upper),
            color=BLUE,
            alpha=0.2,
            linewidth=0,
            label="best possible, bounds",
        )
    axes.plot(rank, values, color=BLUE, linewidth=2, label="sketched, estimate")
    if exact is not None:
        _exact(axes, rank, exact)
    _log_scale(axes, "y", values)
    if (values > 0).any():
        axes.set_ylim(bottom=0.5 * values[values > 0].min())
    _whole_numbers(axes)
    _style(axes, "Residual by rank", "rank", "relative residual, Frobenius norm")
    axes.legend(**LEGEND)


def overlap_panel(
    axes: Axes,
    result: OverlapResult | HessianResults,
    *,
    exact: Values | None = None,
    log_x: bool = False,
) -> None:
    """Draw overlap(k) against k = 1 … K, beside k / N and random masks.

    A band holds 95 % of the random masks; the overlap is shaded as far as it may be off, and not
    where that is unknown. The overlap (K,) of the `exact` eigenvectors is a line
    on top. With `log_x` k is on a log scale.
    """
    overlap, baseline = _array(result.overlap), _array(result.baseline)
    k = np.arange(1, len(overlap) + 1)
    axes.fill_between(
        _array(result.grid),
        *_array(result.quantiles),
        color=GREY,
        alpha=0.25,
        linewidth=0,
        label="95 % of random masks",
    )
    axes.plot(k, baseline, "--", color=BLACK, linewidth=1.2, label="chance, k / N")
    axes.plot(k, overlap, color=BLUE, linewidth=2, label="magnitude mask")
    if exact is not None:
        _exact(axes, k, exact)
    top = axes.get_ylim()[1]  # a shade may go beyond
    error = np.asarray(result.overlap_error, dtype=np.float64)  # None is NaN
    if np.isfinite(error).any():
        lacking = "\n(no shade: gap not resolved)" if np.isnan(error).any() else ""
        axes.fill_between(
            k,
            overlap - error,
            overlap + error,
            color=BLUE,
            alpha=0.25,
            linewidth=1,  # of a single k that has an error, only the edge is seen
            label=f"may be off by, 95 %{lacking}",
        )
    axes.set_ylim(0, top)
    if log_x:
        _log_scale(axes, "x", k)
    else:
        _whole_numbers(axes)
    _style(axes, "Overlap with the largest parameters", "k eigenvectors, k parameters", "overlap")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], **LEGEND)


def hessian_figure(
    results: HessianResults, title: str, exact: ExactResults | None = None
) -> Figure:
    """One Hessian at a glance: its eigenvalues, relative residuals and overlap, side by side.

    The title names the problem, the step and the split. Exact results are lines on top; they
    replace the bounds of the best residual.
    """
    figure, (first, second, third) = _panels(3, title)
    exact_values = exact.eigenvalues if exact else None
    eigenvalue_panel(first, results.eigenvalues, exact_values, results.eigenvalue_bound or None)
    residual = _relative(results.residual)
    if exact is None:
        scree_panel(second, residual, *np.sqrt(results.scree_bounds))
    else:
        scree_panel(second, residual, exact=_relative(exact.residual))
    overlap_panel(third, results, exact=exact.overlap if exact else None)
    return figure


def lanczos_figure(results: LanczosResults, title: str) -> Figure:
    """Eigenpairs of the Lanczos method: eigenvalues, their residuals, and the overlap."""
    figure, (first, second, third) = _panels(3, title)
    eigenvalue_panel(first, results.eigenvalues, bound=results.eigenvalue_bound)
    if results.which != "LM":
        first.set_xlabel("index")
    residual_panel(second, results)
    overlap_panel(third, results)
    return figure


def residual_panel(axes: Axes, results: LanczosResults) -> None:
    """Draw ‖A w - λ w‖ / |λ| of each pair on a log scale; those that have converged are filled."""
    residual, size = _array(results.pair_residual), np.abs(_array(results.eigenvalues))
    relative = residual / np.maximum(size, 1e-300)
    index, converged = np.arange(1, len(relative) + 1), np.array(results.converged, dtype=bool)
    looks: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5, "color": BLUE}
    for name, chosen, face in (("converged", converged, BLUE), ("not yet", ~converged, "none")):
        if chosen.any():
            axes.plot(index[chosen], relative[chosen], markerfacecolor=face, label=name, **looks)
    _log_scale(axes, "y", relative)
    _whole_numbers(axes)
    _style(axes, "Residual by pair", "index", "‖Aw - λw‖ over |λ|")
    axes.legend(**LEGEND)


def trace_figure(results: TraceResults, title: str) -> Figure:
    """A trace with its interval, and how the samples scatter about it."""
    figure, (axes,) = _panels(1, title)
    samples, (value, error) = _array(results.samples), results.trace
    samples = samples + (value - samples.mean()) if len(samples) else samples
    index = np.arange(1, len(samples) + 1)
    if len(samples):
        axes.plot(index, samples, ".", color=GREY, markersize=5, label="samples")
    axes.axhspan(value - error, value + error, color=BLUE, alpha=0.25, linewidth=0)
    axes.axhline(value, color=BLUE, linewidth=2, label=f"trace {results.estimate}, 95 %")
    _whole_numbers(axes)
    _style(axes, "Trace", "sample", "trace")
    axes.legend(**{**LEGEND, "frameon": True})  # as samples lie everywhere
    return figure


def density_figure(results: DensityResults, title: str) -> Figure:
    """The density of eigenvalues on a log scale; atoms, each of weight 1 / N, are marked."""
    figure, (axes,) = _panels(1, title)
    density, grid = _array(results.density), _array(results.grid)
    axes.plot(grid, density, color=BLUE, linewidth=1.5, label="density")
    axes.set_yscale("log")
    peak = density.max() if density.max() > 0 else 1.0
    # an eigenvalue alone would be a bump of this height; below a hundredth of it nothing is seen
    one = 1 / (results.parameters * results.sigma * np.sqrt(2 * np.pi))
    axes.set_ylim(min(one, peak) / 100, 3 * peak)
    if len(results.atoms):
        heights = np.full(len(results.atoms), one)
        look: dict[str, Any] = {"color": VERMILLION, "linestyle": "", "marker": "|"}
        axes.plot(_array(results.atoms), heights, label="atoms, 1 / N each", **look)
    _style(axes, "Density of eigenvalues", "eigenvalue", "density")
    axes.legend(**LEGEND)
    return figure


def damping_figure(curve: Mapping[str, Sequence[float]], title: str) -> Figure:
    """The mean error of an approximate inverse at each damping, with its standard error."""
    figure, (axes,) = _panels(1, title)
    dampings, errors = _array(curve["dampings"]), _array(curve["errors"])
    axes.errorbar(
        dampings, errors, _array(curve["standard_errors"]), color=BLUE, marker="o", capsize=2
    )
    axes.set_xscale("log")
    _style(axes, "Error on held-out gradients", "damping δ of the inverse", "mean error")
    return figure


def kronecker_figure(results: KroneckerResults, title: str) -> Figure:
    """The trace, the largest eigenvalue, and the error of products of each layer's block.

    Beside them is what it captures of another method's eigenspaces, if that is known.
    """
    figure, (axes, errors, *others) = _panels(4 if results.against else 2, title)
    index = np.arange(1, len(results.layers) + 1)
    axes.plot(index, [layer[4] for layer in results.layers], "o", color=BLUE, label="trace")
    largest = [layer[6] for layer in results.layers]
    axes.plot(index, largest, "x", color=VERMILLION, label="largest eigenvalue")
    axes.set_yscale("log")
    _whole_numbers(axes)
    _style(axes, "Blocks of layers", "layer", "")
    axes.legend(**{**LEGEND, "frameon": True})
    values, bars = zip(*results.each_error, strict=True)
    errors.errorbar(index, values, yerr=bars, fmt="o", color=BLUE, label="each block")
    errors.axhline(results.error.value, color=VERMILLION, label="all blocks")
    between = "with what is between them"
    errors.axhline(results.whole_error.value, color=BLACK, linestyle=":", label=between)
    errors.set_ylim(bottom=0)
    _whole_numbers(errors)
    _style(errors, "Error of products", "layer", "relative error")
    errors.legend(**{**LEGEND, "frameon": True})
    if others:
        captured_panel(others[0], results)
        eigenvalue_panel(others[1], results.eigenvalues, bound=results.pair_residual)
        index = np.arange(1, len(results.quotients) + 1)
        look: dict[str, Any] = {"color": BLACK, "linewidth": 1, "label": "approximation there"}
        others[1].plot(index, np.abs(_array(results.quotients)), **look)
        others[1].legend(**LEGEND)
    return figure


def captured_panel(axes: Axes, results: KroneckerResults) -> None:
    """Draw the overlap of top-k eigenspaces against k, as far as it may be off, beside k / N."""
    overlap, k = _array(results.overlap), np.arange(1, len(results.overlap) + 1)
    error = np.asarray(results.overlap_error, dtype=np.float64)  # None is NaN
    shade: dict[str, Any] = {"color": BLUE, "alpha": 0.25, "linewidth": 0}
    if np.isfinite(error).any():
        shade["label"] = "may be off by, 95 %"
        axes.fill_between(k, overlap - error, overlap + error, **shade)
    axes.plot(k, overlap, color=BLUE, linewidth=2, label="approximation")
    axes.plot(k, _array(results.baseline), "--", color=BLACK, linewidth=1.2, label="chance, k / N")
    axes.set_ylim(0, 1)
    _whole_numbers(axes)
    _style(axes, f"Top eigenspaces of {results.against}", "k eigenvectors", "overlap")
    axes.legend(**LEGEND)


def metrics_figure(rows: Sequence[Row], title: str = "Metrics of random subspaces") -> Figure:
    """The median of each metric of random subspaces, over the greatest that it can be.

    The panels are k / N at the largest N, for pairs with orthonormal matrices and for two masks; N
    at one k / N; and how many directions are shared. Shaded are 95 % of the draws.
    """
    figure, (mixed, masks, dimension, shared) = _panels(4, title)
    random = [row for row in rows if not row.shared]
    n = max(row.n for row in random)
    ratio = min({row.k / n for row in random if row.n == n}, key=lambda x: abs(x - SHARED_RATIO))
    for axes, pair in ((mixed, "O-O"), (masks, "B-B"), (mixed, "O-B")):
        chosen = [row for row in random if row.n == n and row.pair == pair]
        _metric_lines(axes, chosen, lambda row: row.k / row.n, points=pair == "O-B")
        if pair != "O-B":
            dots: dict[str, Any] = {"linewidth": 0.8, "linestyle": (0, (1, 3)), "label": "k / N"}
            axes.axline((0, 0), slope=1, color=BLACK, **dots)
    chosen = [row for row in random if row.pair == "O-O" and row.k == max(1, round(ratio * row.n))]
    _metric_lines(dimension, chosen, lambda row: row.n)
    chosen = [row for row in rows if row.shared]
    _metric_lines(shared, chosen, lambda row: row.shared / row.k)
    _log_scale(dimension, "x", np.array([row.n for row in random], dtype=np.float64))
    _style(mixed, f"O-O (lines) and O-B (points), N = {n}", "k / N", "median / greatest value")
    _style(masks, f"B-B, N = {n}", "k / N", "")
    _style(dimension, f"O-O, k / N = {ratio:.2g}", "N", "")
    of = f"N = {chosen[0].n}, k = {chosen[0].k}" if chosen else ""
    _style(shared, f"Directions in common, {of}", "share of k that is in common", "")
    for axes in (mixed, masks, dimension, shared):
        axes.set_ylim(-0.02, 1.04)
    figure.legend(*masks.get_legend_handles_labels(), loc="outside right center", **LEGEND)
    return figure


def _metric_lines(
    axes: Axes, rows: Sequence[Row], x: Callable[[Row], float], points: bool = False
) -> None:
    """Draw each metric's median over its greatest value, as a line with a band, or as points."""
    for metric, (colour, line) in METRIC_LOOKS.items():
        chosen = [row for row in rows if row.metric == metric]
        places = [x(row) for row in chosen]
        low, median, high = (
            [getattr(row, name) / row.greatest for row in chosen]
            for name in ("low", "median", "high")
        )
        if points:
            axes.plot(places, median, "o", color=colour, markersize=3.5)
            continue
        axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
        look: dict[str, Any] = {"color": colour, "linestyle": line, "label": metric}
        look |= {"linewidth": 2.5 if metric == "overlap" else 1.4}
        axes.plot(places, median, marker="." if len(places) == 1 else "", **look)


def training_figure(log: Sequence[Mapping[str, Any]], title: str = "Training") -> Figure:
    """Losses and accuracies against the step, one panel each, from the records of a training log.

    A record is like {"step": 100, "train": {"loss": 0.5, "accuracy": 0.9}, "test": …}, and may lack
    some of it. A panel without numbers is left out. Raises `SkerchError` where none has any.
    """
    panels = {
        quantity: series for quantity in ("loss", "accuracy") if (series := _series(log, quantity))
    }
    if not panels:
        raise SkerchError(
            f"The training log has no loss or accuracy in its {len(log)} records: there is nothing "
            'to draw; a record is like {"step": 100, "train": {"loss": 0.5}}.'
        )
    figure, row = _panels(len(panels), title)
    for axes, (quantity, series) in zip(row, panels.items(), strict=True):
        looks = cycle([(BLUE, "-", "o"), (VERMILLION, "--", "s"), (BLACK, ":", "^")])
        for (split, points), (colour, line, marker) in zip(series.items(), looks, strict=False):
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                linestyle=line,
                linewidth=1.8,
                marker=marker if len(points) <= 30 else "",
                markersize=4.5,
                label=split,
            )
        _whole_numbers(axes)
        _style(axes, quantity.capitalize(), "training step", quantity)
        axes.legend(**LEGEND)
    return figure


def _series(log: Sequence[Mapping[str, Any]], quantity: str) -> dict[str, list[tuple[int, float]]]:
    """The points (step, number) of a quantity, by split."""
    series: dict[str, list[tuple[int, float]]] = {}
    for record in log:
        for split, figures in record.items():
            if split != "step" and quantity in figures:
                series.setdefault(split, []).append((record["step"], figures[quantity]))
    return series


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def _array(values: Values) -> np.ndarray:
    """The values as a float64 array on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _relative(residual: Values) -> np.ndarray:
    """Residuals (k + 1,) divided by the first, ‖H‖_F."""
    values = _array(residual)
    relative: np.ndarray = values / max(values[0], 1e-300)
    return relative


def _panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels side by side under a title."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    width, longest = PANEL_INCHES[0] * count, max(map(len, title.splitlines()), default=1)
    figure = Figure(figsize=(width, PANEL_INCHES[1]), layout=layout)
    size = min(13.0, 72 * width / (LETTER * max(longest, 1)))  # points
    figure.suptitle(title, fontsize=size, fontweight="bold")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    """Set title and labels, a light grid behind the data, and no frame but the two axes."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.tick_params(which="both", labelsize=9, color="0.4")
    axes.grid(True, which="major", color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.4")
    axes.margins(x=0.02)


def _exact(axes: Axes, x: np.ndarray, values: Values) -> None:
    """Draw the line of exact values, as far as `x` goes."""
    y = _array(values)[: len(x)]
    axes.plot(x[: len(y)], y, color=BLACK, linewidth=1, label="exact")


def _whole_numbers(axes: Axes) -> None:
    """Put ticks of x at whole numbers only, also where few of them are in view."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _log_scale(axes: Axes, direction: Literal["x", "y"], values: np.ndarray) -> None:
    """Set a log scale; its ticks are plain numbers where values span less than three decades."""
    axes.set(**{f"{direction}scale": "log"})
    axis = axes.xaxis if direction == "x" else axes.yaxis
    positive = values[np.isfinite(values) & (values > 0)]
    span = positive.max() / positive.min() if len(positive) else np.inf
    if span < 1e3:
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if span < 10 else (1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
