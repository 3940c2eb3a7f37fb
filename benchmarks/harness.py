"""What tables share: where they belong, Markdown, figures with targets, turns, other processes.

Imports no torch, as what a table measures may be that import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from types import ModuleType
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]
QUADRATIC = ROOT / "benchmarks" / "quadratic.yaml"  # costs next to nothing
T = TypeVar("T")


@dataclass(frozen=True)
class Benchmark:
    """Where a table belongs."""

    document: str  # which it fills
    make: str  # the target of the Makefile that measures it anew
    quick: bool = False  # whether it is also one of `make bench-quick`


@dataclass(frozen=True)
class Options:
    """How to measure."""

    quick: bool  # the same figures from less work
    root: Path  # the folder that holds MNIST/raw


@dataclass(frozen=True)
class Figure:
    """A measured value, and the target that it must reach ("≥") or stay below ("≤")."""

    name: str
    value: float
    bound: str
    target: float
    unit: str = ""
    form: str = "#.3g"

    @property
    def holds(self) -> bool:
        """Whether the target is met; a value that is not a number meets none."""
        return self.value >= self.target if self.bound == "≥" else self.value <= self.target

    @property
    def row(self) -> tuple[str, ...]:
        """Its row of the table of figures."""
        value, target = digits(self.value, self.form), f"{self.bound} {self.target:g}"
        return self.name, value + self.unit, target + self.unit, "yes" if self.holds else "**no**"


def digits(value: float, form: str = "#.3g") -> str:
    """A number in three digits, or in the digits of a form."""
    return f"{value:{form}}".rstrip(".")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], title: str = "") -> str:
    """A Markdown table; columns after the first are set right, floats in three digits."""

    def line(cells: Iterable[object]) -> str:
        texts = (digits(cell) if isinstance(cell, float) else str(cell) for cell in cells)
        return f"| {' | '.join(texts)} |"

    lines = [line(header), line(["---"] + ["---:"] * (len(header) - 1)), *map(line, rows)]
    return "\n".join([f"**{title}**\n", *lines] if title else lines)


def say(progress: str) -> None:
    """A line of progress."""
    print(progress, file=sys.stderr, flush=True)


def tables() -> dict[str, ModuleType]:
    """The modules of all tables, by name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("tables/[!_]*.py"))
    return {name: import_module(f"benchmarks.tables.{name}") for name in names}


def run(module: ModuleType, options: Options) -> int:
    """Print a table as it is measured, then its figures: 0 if all hold, 1 if not, 2 if it fails."""
    figures: list[Figure] = []
    failed = False
    try:
        for found in module.measure(options):
            if isinstance(found, Figure):
                figures.append(found)
            else:
                print(found, end="\n\n", flush=True)
    except Exception:
        traceback.print_exc()
        failed = True
    if figures:
        rows = (figure.row for figure in figures)
        print(table(("figure", "measured", "target", "met"), rows), end="\n\n", flush=True)
    return 2 if failed else int(not all(figure.holds for figure in figures))


def clock(work: Callable[[], object], now: Callable[[], float] = perf_counter) -> float:
    """The seconds of one run."""
    start = now()
    work()
    return now() - start


def in_turns(
    works: Mapping[str, Callable[[], T]], turns: int, budget: float = float("inf")
) -> dict[str, list[T]]:
    """What each returns by turn, after one for warmth; every other turn goes backwards.

    There is one turn at least, and none begins after so many seconds.
    """
    found: dict[str, list[T]] = {name: [] for name in works}
    end = 0.0
    for turn in range(turns + 1):
        if turn == 1:
            end = perf_counter() + budget
        elif turn and perf_counter() > end:
            break
        for name in reversed(works) if turn % 2 else works:
            found[name].append(works[name]())
    return {name: values[1:] for name, values in found.items()}


def over(ones: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios by turn: what else the machine does in a turn slows both."""
    return median(one / other for one, other in zip(ones, others, strict=True))


def apart(work: Callable[..., T], *arguments: Any, launcher: Sequence[str] = ()) -> T:
    """What a function of a module returns in one thread of a Python of its own.

    Arguments and result are plain. Of several processes that a launcher starts, all but one return
    None.
    """
    call = f"from {work.__module__} import {work.__name__} as work; answer = work(*{arguments!r})"
    tell = "answer is None or print(json.dumps(answer))"  # a line of None could fall within another
    done = subprocess.run(
        [*launcher, sys.executable, "-c", f"import json; {call}; {tell}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found: T = json.loads(done.stdout)
    return found
