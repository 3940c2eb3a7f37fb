"""Charts as SVG: crisp in print, themed by the page's style sheet, small.

A chart is data, of which the same picture, table of values and words for screen readers are made.
What is within the axes is an SVG of its own, so that a script zooms by its viewBox alone. Points
are strokes without length, which keep their shape there.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal, TypeAlias

Number: TypeAlias = "float | None"
Values: TypeAlias = "Sequence[Number]"
Look: TypeAlias = Literal["line", "dashed", "points", "up", "down", "band"]

WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 40
ACROSS, DOWN = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
MOST_MARKED = 30  # points of a line that are marked
MOST_POINTS = 80  # of a curve in the page: more are not told apart, and are in the CSV file


@dataclass(frozen=True)
class Series:
    """Values y (n,) at x (n,), and an interval about each: a line's is shaded, a point's a bar.

    Where y is None or not finite nothing is drawn, and where it is not positive on a log scale.
    """

    name: str
    x: Sequence[float]
    y: Values
    look: Look = "line"
    colour: int = 0  # of the style sheet's: 0 to 4
    low: Values = ()
    high: Values = ()


@dataclass(frozen=True)
class Chart:
    """Series over one pair of axes."""

    title: str
    x: str  # labels, with units where there are any
    y: str
    series: Sequence[Series]
    log_y: bool = False
    whole: bool = True  # x counts something
    words: str = ""  # what is to be seen, for those who do not see it


@dataclass(frozen=True)
class Heatmap:
    """Values in [0, 1] of each pair of some things, (n, n)."""

    title: str
    labels: Sequence[str]
    values: Sequence[Values]
    errors: Sequence[Values] = ()
    words: str = ""


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels."""

    low: float
    high: float
    length: float
    log: bool = False
    ticks: Sequence[float] = field(default=())

    def __call__(self, value: float) -> float:
        """How far a value is along the axis."""
        value, low, high = (
            (math.log10(value), math.log10(self.low), math.log10(self.high))
            if self.log
            else (value, self.low, self.high)
        )
        return self.length * (value - low) / (high - low)


def axis(values: Sequence[float], length: float, log: bool = False, whole: bool = False) -> Axis:
    """An axis that holds all values, with some four to seven ticks."""
    shown = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = min(shown, default=1.0), max(shown, default=2.0)
    if log:
        if high < 1.05 * low:
            low, high = low / 2, high * 2
        margin = (high / low) ** 0.04
        low, high = low / margin, high * margin
        return Axis(low, high, length, True, _log_ticks(low, high))
    if high == low:
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    margin = 0.03 * (high - low)
    low, high = low - margin, high + margin
    return Axis(low, high, length, False, _linear_ticks(low, high, whole))


def _linear_ticks(low: float, high: float, whole: bool) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // 6)
    marks: tuple[int, ...] = (1, 2, 5) if last - first <= 2 else (1,)
    if high < 5 * low:
        marks = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    ticks = [m * 10.0**e for e in range(first, last + 1, every) for m in marks]
    return [tick for tick in ticks if low <= tick <= high]


def draw(chart: Chart) -> str:
    """The SVG of a chart."""
    xs = [float(x) for series in chart.series for x in series.x]
    ys = [y for s in chart.series for values in (s.y, s.low, s.high) for y in _numbers(values)]
    across = axis(xs, ACROSS, whole=chart.whole)
    down = axis(ys, DOWN, log=chart.log_y)
    body = "".join(_series(series, across, down) for series in chart.series)
    scale = f'data-x="{across.low:.7g},{across.high:.7g}" data-y="{down.low:.7g},{down.high:.7g}"'
    scale += ' data-log="1"' if chart.log_y else ""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" {scale} '
        f'aria-label="{escape(f"{chart.title}. {chart.words}".strip(), quote=True)}">'
        f"{_axes(across, down)}"
        f'<text class="label" x="{LEFT + ACROSS / 2:g}" y="{HEIGHT - 6}">{escape(chart.x)}</text>'
        f'<text class="label" transform="translate(11 {TOP + DOWN / 2:g}) rotate(-90)">'
        f"{escape(chart.y)}</text>"
        f'<svg class="plot" x="{LEFT}" y="{TOP}" width="{ACROSS}" height="{DOWN}" '
        f'viewBox="0 0 {ACROSS} {DOWN}" preserveAspectRatio="none">{body}</svg></svg>'
    )


def _axes(across: Axis, down: Axis) -> str:
    """Ticks with their numbers, and grid lines behind the data."""
    parts = []
    for tick in across.ticks:
        x = LEFT + across(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}v{DOWN}"/>')
        parts.append(f'<text class="x" x="{x:.1f}" y="{TOP + DOWN + 16}">{tick:.6g}</text>')
    for tick in down.ticks:
        y = TOP + DOWN - down(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{ACROSS}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{y + 4:.1f}">{tick:.6g}</text>')
    return f'<g class="axes">{"".join(parts)}</g>'


def _series(series: Series, across: Axis, down: Axis) -> str:
    """A series in the plot's pixels."""

    def place(x: float, y: Number) -> tuple[float, float] | None:
        if y is None or not math.isfinite(y) or (down.log and y <= 0):
            return None
        return across(x), DOWN - down(y)

    lows = [_within(low, down) for low in series.low]
    ends = list(
        zip(
            (place(x, y) for x, y in zip(series.x, lows, strict=False)),
            (place(x, y) for x, y in zip(series.x, series.high, strict=False)),
            strict=True,
        )
    )
    kind = f"c{series.colour}"
    parts = []
    if series.look in ("line", "dashed", "band"):
        for run in _runs([None if None in pair else pair for pair in ends]):
            there = [high for _, high in run] + [low for low, _ in reversed(run)]
            parts.append(f'<path class="band {kind}" d="{_polyline(there)}Z"/>')
    else:
        bars = "".join(f"M{a[0]:.1f} {a[1]:.1f}V{b[1]:.1f}" for a, b in ends if a and b)
        parts.append(f'<path class="bar {kind}" d="{bars}"/>' if bars else "")
    points = [place(x, y) for x, y in zip(series.x, series.y, strict=True)]
    if series.look in ("line", "dashed"):
        d = "".join(map(_polyline, _runs(points)))
        parts.append(f'<path class="{series.look} {kind}" d="{d}"/>' if d else "")
    if series.look in ("points", "up", "down") or len(points) <= MOST_MARKED:
        parts.append(_marks(series, [point for point in points if point], kind))
    return "".join(parts)


def _marks(series: Series, points: Sequence[tuple[float, float]], kind: str) -> str:
    """Points, which are round; squares tell the other sign apart without colour."""
    shape = "points square" if series.look == "down" else "points"
    d = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return f'<path class="{shape} {kind}" d="{d}"/>' if points else ""


def _within(low: Number, down: Axis) -> Number:
    """The lower end of an interval; on a log scale, what reaches 0 reaches the axis's end."""
    return down.low if down.log and low is not None and low <= 0 else low


def _runs(points: Sequence[object]) -> list[list]:  # type: ignore[type-arg]
    """Stretches without a gap."""
    runs: list[list[object]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *rest = points
    return f"M{x:.1f} {y:.1f}L" + " ".join(f"{x:.1f} {y:.1f}" for x, y in rest or points)


def heatmap(chart: Heatmap) -> str:
    """The SVG of a heatmap, with the values written where there is room."""
    n = len(chart.labels)
    side, left, top = 300 / n, 78, 78
    size = f'width="{side:.1f}" height="{side:.1f}"'
    parts = []
    for i, row in enumerate(chart.values):
        for j, value in enumerate(row):
            if value is None:
                continue
            x, y = left + j * side, top + i * side
            shade = f'fill-opacity="{max(0.0, min(1.0, value)):.2f}"'
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} {shade}/>')
            if n <= 12:
                light = " light" if value > 0.55 else ""
                parts.append(
                    f'<text class="cell{light}" x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}" '
                    f'font-size="{min(11, side / 2.6):.1f}">{value:.2f}</text>'
                )
    for i, label in enumerate(chart.labels):
        at = (i + 0.5) * side
        font = f'font-size="{min(10, side):.1f}"'
        parts.append(f'<text class="y" x="{left - 4}" y="{top + at + 3:.1f}" {font}>{label}</text>')
        turn = f"translate({left + at + 3:.1f} {top - 4}) rotate(-90)"
        parts.append(f'<text class="up" transform="{turn}" {font}>{escape(label)}</text>')
    return (
        f'<svg class="heatmap" viewBox="0 0 {left + 304} {top + 304}" role="img" tabindex="0" '
        f'aria-label="{escape(f"{chart.title}. {chart.words}".strip(), quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def table_of(chart: Chart | Heatmap, most: int | None = None) -> str:
    """The chart's numbers as CSV; with `most`, of so many values of x at most."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if isinstance(chart, Heatmap):
        errors = chart.errors or [()] * len(chart.labels)
        told = [f"{label}, ±" for label in chart.labels] if chart.errors else []
        writer.writerow(["", *chart.labels, *told])
        for label, row, error in zip(chart.labels, chart.values, errors, strict=True):
            writer.writerow([label, *map(_digits, row), *map(_digits, error)])
        return out.getvalue()
    columns: dict[str, dict[float, Number]] = {}
    for series in chart.series:
        for name, values in (
            (series.name, series.y),
            (f"{series.name}, from", series.low),
            (f"{series.name}, to", series.high),
        ):
            if any(value is not None for value in values):  # a band alone has no line
                columns[name] = dict(zip(series.x, values, strict=True))
    xs = sorted({float(x) for column in columns.values() for x in column})
    writer.writerow([chart.x, *columns])
    for x in thin(xs, most):
        writer.writerow([_digits(x), *(_digits(column.get(x)) for column in columns.values())])
    return out.getvalue()


def thin(values: Sequence[float], most: int | None) -> list[float]:
    """At most so many of the values: the first ones, where curves bend, and then every so many."""
    if most is None or len(values) <= most:
        return list(values)
    first = most // 4
    step = (len(values) - 1 - first) / (most - first - 1)
    later = {first + round(i * step) for i in range(most - first)}
    return [values[i] for i in sorted({*range(first), *later})]


def thinned(series: Series, most: int = MOST_POINTS) -> Series:
    """A series of at most so many points."""
    kept = [int(i) for i in thin(range(len(series.x)), most)]

    def of(values: Sequence) -> list:  # type: ignore[type-arg]
        return [values[i] for i in kept] if len(values) else []

    return Series(
        series.name,
        of(series.x),
        of(series.y),
        series.look,
        series.colour,
        of(series.low),
        of(series.high),
    )


def _numbers(values: Values) -> list[float]:
    return [float(v) for v in values if v is not None and math.isfinite(v)]


def _digits(value: Number) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"
