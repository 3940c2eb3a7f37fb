"""The page: sections of tables and charts, with everything that it needs inside of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import TypeAlias

from skerch.analysis.report.svg import (
    MOST_POINTS,
    Chart,
    Heatmap,
    Series,
    draw,
    heatmap,
    table_of,
    thinned,
)

# nothing is loaded and nothing is sent, by the page or by what somebody puts into it
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; a heading's first column names the row."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True)
class Shown:
    """A chart, and the file beside the page that has all of its numbers."""

    chart: Chart | Heatmap
    file: str  # relative to the page


@dataclass(frozen=True)
class Choice:
    """What is shown at one training step, of one split; the page's menu picks it."""

    step: int
    split: str
    title: str
    parts: Sequence[Part]


Part: TypeAlias = "Table | Shown | Choice | str"


@dataclass(frozen=True)
class Section:
    """A heading, what is to be known in a sentence, and for each run what is shown of it."""

    name: str  # an anchor
    title: str
    words: str
    runs: Sequence[Sequence[Part]]  # one a run


@dataclass(frozen=True)
class Report:
    """What a page says."""

    title: str
    runs: Sequence[str]  # what each is called
    lead: Sequence[str]  # a sentence on each
    sections: Sequence[Section]


def render(report: Report) -> str:
    """The page."""
    own = files("skerch.analysis.report")
    style, script = ((own / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    sections = [section for section in report.sections if any(section.runs)]
    links = "".join(f'<a href="#{each.name}">{escape(each.title)}</a>' for each in sections)
    lead = "".join(f"<p>{escape(sentence)}</p>" for sentence in report.lead)
    body = "".join(_section(section, report.runs) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(report.title)}</h1>{lead}<nav aria-label="Sections">{links}</nav>'
        f"</header>\n<main>\n{body}</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _section(section: Section, names: Sequence[str]) -> str:
    """A section, with the runs side by side."""
    menu = ""
    if any(isinstance(part, Choice) for run in section.runs for part in run):
        menu = '<form class="menu" hidden aria-label="Which Hessian is shown"></form>'
    columns = []
    for name, parts in zip(names, section.runs, strict=True):
        heading = f'<h3 class="run">{escape(name)}</h3>' if len(names) > 1 else ""
        columns.append(f'<div class="column">{heading}{"".join(_parts(parts))}</div>')
    words = f"<p>{escape(section.words)}</p>" if section.words else ""
    return (
        f'<section id="{section.name}"><h2>{escape(section.title)}</h2>{words}{menu}'
        f'<div class="columns">{"".join(columns)}</div></section>\n'
    )


def _parts(parts: Iterable[Part]) -> Iterator[str]:
    """Parts in their order, with charts that follow each other in a grid."""
    charts: list[str] = []
    for part in parts:
        if isinstance(part, Shown):
            charts.append(_figure(part))
            continue
        if charts:
            yield f'<div class="charts">{"".join(charts)}</div>'
            charts = []
        if isinstance(part, Choice):
            yield (
                f'<div class="choice" data-step="{part.step}" data-split="{escape(part.split)}">'
                f"<h3>{escape(part.title)}</h3>{''.join(_parts(part.parts))}</div>"
            )
        elif isinstance(part, Table):
            yield _table(part)
        else:
            yield f"<pre>{escape(part)}</pre>"
    if charts:
        yield f'<div class="charts">{"".join(charts)}</div>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in table.headings)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    long = ' class="long"' if len(text) > 60 else ""
    return f"<td{long}>{escape(text)}</td>"


def _figure(shown: Shown) -> str:
    """A chart with its legend and its numbers."""
    chart = shown.chart
    if isinstance(chart, Heatmap):
        picture, legend, kept = heatmap(chart), "", table_of(chart)
        told = f'<a href="{escape(shown.file)}">{escape(shown.file)}</a>'
    else:
        longest = max((len(series.x) for series in chart.series), default=0)
        small = Chart(**vars(chart) | {"series": [thinned(each) for each in chart.series]})
        picture, kept = draw(small), table_of(small, MOST_POINTS)
        legend = f'<ul class="legend">{"".join(map(_key, chart.series))}</ul>'
        all_of = f"all {longest} in " if longest > MOST_POINTS else ""
        told = f'{all_of}<a href="{escape(shown.file)}">{escape(shown.file)}</a>'
    words = f'<p class="words">{escape(chart.words)}</p>' if chart.words else ""
    return (
        f"<figure><figcaption>{escape(chart.title)}</figcaption>{picture}{legend}{words}"
        f"<details><summary>numbers</summary><p>{told}</p>"
        f'<pre class="csv">{escape(kept)}</pre></details></figure>'
    )


def _key(series: Series) -> str:
    """A line of a legend: how a series looks, and its name."""
    kind = f"c{series.colour}"
    picture = {
        "line": f'<path class="line {kind}" d="M1 6h20"/>',
        "dashed": f'<path class="dashed {kind}" d="M1 6h20"/>',
        "band": f'<path class="band {kind}" d="M1 1h20v10h-20Z"/>',
        "points": f'<path class="points {kind}" d="M11 6h0"/>',
        "up": f'<path class="points {kind}" d="M11 6h0"/>',
        "down": f'<path class="points square {kind}" d="M11 6h0"/>',
    }[series.look]
    return (
        f'<li><svg viewBox="0 0 22 12" aria-hidden="true">{picture}</svg>{escape(series.name)}</li>'
    )
