"""Curves side by side, for the documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.harness import ROOT
from skerch.analysis.figures import LEGEND, save

Look = tuple[str, str]  # colour and line style
Curves = dict[str, tuple[Look, Sequence[float], Sequence[float]]]  # by label: x and y
MARKED = 20  # points at most that are marked


def draw(name: str, *panels: tuple[Curves, dict[str, Any]]) -> None:
    """Write docs/images/<name>.png: curves and the settings of their axes, a panel each."""
    figure = Figure(figsize=(4.2 * len(panels), 3.8), layout="constrained")
    for axes, (curves, settings) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for label, ((colour, line), xs, ys) in curves.items():
            marker = "o" if len(xs) < MARKED else ""
            axes.plot(xs, ys, line, color=colour, marker=marker, label=label)
        axes.set(**settings)
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            if axis.get_scale() == "log" and high < 100 * low:
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
        axes.legend(**LEGEND)
    save(figure, ROOT / "docs" / "images" / f"{name}.png")
