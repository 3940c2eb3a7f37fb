"""Figures with targets, as the scripts of this folder print them, and what the machine can do."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from peers.products import seconds

Work = Callable[[], float]  # something done, in seconds
T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """A measured value, and the target that it must reach ("≥") or stay below ("≤")."""

    name: str
    value: float
    bound: str
    target: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        """Whether the target is met; a value that is not a number meets none."""
        return self.value >= self.target if self.bound == "≥" else self.value <= self.target


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; columns after the first are set right, floats in three digits."""

    def line(cells: Iterable[object]) -> str:
        texts = (f"{cell:#.3g}".rstrip(".") if isinstance(cell, float) else cell for cell in cells)
        return f"| {' | '.join(map(str, texts))} |"

    return "\n".join([line(header), line(["---"] + ["---:"] * (len(header) - 1)), *map(line, rows)])


def finish(figures: Sequence[Figure]) -> None:
    """Print the figures beside their targets; exit status 1 if one falls short."""
    rows = (
        (
            figure.name,
            f"{figure.value:#.3g}".rstrip(".") + figure.unit,
            f"{figure.bound} {figure.target:g}{figure.unit}",
            "yes" if figure.holds else "**no**",
        )
        for figure in figures
    )
    print(table(["figure", "measured", "target", "met"], rows), flush=True)
    sys.exit(not all(figure.holds for figure in figures))


def least_seconds(work: Callable[[], object], repeat: int = 5, budget: float = 10.0) -> float:
    """The least wall-clock time of some runs after one for warmth; none begins after the budget."""
    work()
    begin, least = time.perf_counter(), float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        end = time.perf_counter()
        least = min(least, end - start)
        if end - begin > budget:
            break
    return least


def in_turns(works: Mapping[str, Callable[[], T]], turns: int) -> dict[str, list[T]]:
    """What each returns by turn, after one for warmth; every other turn goes backwards."""
    found: dict[str, list[T]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name in reversed(works) if turn % 2 else works:
            found[name].append(works[name]())
    return {name: values[1:] for name, values in found.items()}


def over(ones: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios by turn: what else the machine does in a turn slows both."""
    return median(one / other for one, other in zip(ones, others, strict=True))


def machine() -> str:
    """The processor, threads and versions that the figures are of, in one line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown processor",
    )
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def gemm_operation(dtype: torch.dtype, size: int = 2048) -> Work:
    """Measures a floating-point operation of a square matrix product."""
    A = torch.randn(size, size, dtype=dtype)
    return lambda: seconds(lambda: A @ A, A.device) / (2 * size**3)


def gemm_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of a square matrix product."""
    A = torch.randn(size, size, dtype=dtype)
    return 2 * size**3 / least_seconds(lambda: A @ A)


def write_rate(path: Path, size: int = 2**30, now: Work = time.perf_counter) -> float:
    """Bytes a second that are written to a new file, until they are on the disk."""
    piece = os.urandom(2**24)
    start = now()
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // len(piece)):
            file.write(piece)
        os.fsync(file.fileno())
    return size / (now() - start)


def read_rate(paths: Sequence[Path], now: Work = time.perf_counter) -> float:
    """Bytes a second that are read from files once the page cache has dropped them."""
    for path in paths:
        drop_cache(path)
    start = now()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(2**24):
                pass
    return sum(path.stat().st_size for path in paths) / (now() - start)


def drop_cache(path: Path) -> None:
    """Have the system forget what it holds of a file in memory, once it is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
