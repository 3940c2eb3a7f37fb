"""What a measured column costs beside its Hessian-vector product, for each kind of sketch.

    python benchmarks/columns.py [--quick]

A column's test vector is made, multiplied, checked, compressed and written. --quick measures the
default sketch and recovery only, in smaller blocks. All is of one thread; the writer's is another.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from figures import Figure, finish, in_turns, least_seconds, machine, over, table, write_rate
from torch import Tensor

from skerch.curvature import HessianOperator
from skerch.decompositions.recoveries import RECOVERIES
from skerch.jobs.problems import load_problem
from skerch.jobs.stages.measure import fill
from skerch.measurements.array import MeasurementArray
from skerch.measurements.manifest import Manifest
from skerch.measurements.measure import Measurer
from skerch.sketch_operators import KINDS

DEFAULT = "sparse_sign"
TARGET = 1.15  # of a column over its HVP
HEADER = ("sketch", "recovery", "HVP", "test vector", "sketch", "write", "column", "column / HVP")
WORDS = """
Milliseconds a column, of {blocks} blocks of {size}; the maps took {maps:.2f} s, once. Columns and
HVPs took turns. "sketch" is the compression with the check and the norm, and "write" a block's
alone, which hides behind the next block's matvecs. CPU is the time of all threads, and so the ratio
where the writer has no core to itself.
"""


@dataclass(frozen=True)
class Subject:
    """A Hessian, and how much of its array is measured."""

    problem: dict[str, object]
    datapoints: int
    shape: tuple[int, ...]  # of one
    outer: int
    inner: int
    size: int  # of a block
    blocks: int
    turns: int

    @property
    def name(self) -> str:
        return str(self.problem["name"])

    def operator(self) -> HessianOperator:
        """The Hessian at the initial parameters on random data."""
        torch.manual_seed(0)
        problem = load_problem(self.problem)
        data = torch.rand(self.datapoints, *self.shape), torch.arange(self.datapoints) % 10
        return HessianOperator(problem.model().eval(), [data], problem.loss_fn)


@dataclass(frozen=True)
class Cost:
    """Seconds a column, and what they are made of."""

    hvp: float
    vector: float
    sketch: float
    write: float
    column: float
    ratio: float  # column over HVP
    thread: float  # the same of the CPU time of the thread that measures
    cpu: float  # the same of all threads
    maps: float  # once a worker


class Known:
    """An operator whose product is known."""

    def __init__(self, Y: Tensor):
        self.Y = Y

    def __matmul__(self, _: Tensor) -> Tensor:
        return self.Y


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    mini, cifar = {"name": "mnist_mini"}, {"name": "cifar10_3c3d", "synthetic": True}
    subjects = [
        Subject(mini, 500, (1, 16, 16), 355, 710, 64, 6, 7 if quick else 15),
        Subject(cifar, 100, (3, 32, 32), 1000, 2000, *((2, 3, 2) if quick else (16, 3, 3))),
    ]
    cases = [(DEFAULT, "nystrom")]
    if not quick:
        cases += [(DEFAULT, "oversampled")]
        cases += [(kind, "nystrom") for kind in KINDS if kind != DEFAULT]
    print(f"{machine()}.\n")
    figures = []
    with tempfile.TemporaryDirectory(prefix="skerch-columns-") as folder, ExitStack() as frozen:
        memory, disk = memory_rate(), write_rate(Path(folder) / "rate", 2**28 if quick else 2**30)
        for subject in subjects:
            op = subject.operator()
            frozen.enter_context(op.frozen())
            op.resolve(subject.size)
            N = op.shape[0]
            floor = 1e3 * 4 * N * (2 / memory + 1 / disk)
            print(
                f"**{subject.name}**, N = {N:,}, {subject.datapoints} datapoints, {subject.outer} "
                f"/ {subject.inner}. A column of 4 N = {4 * N / 1e6:.3g} MB is written to memory "
                f"once, read once and written to disk once: at {memory / 1e9:.1f} and "
                f"{disk / 1e9:.2f} GB/s {floor:.3g} ms. A sparse sign map adds 8 N numbers.\n"
            )
            rows = []
            for kind, recovery in cases:
                print(f"{subject.name}, {kind}, {recovery}", file=sys.stderr)
                cost = measure(subject, op, kind, recovery, Path(folder))
                parts = (cost.hvp, cost.vector, cost.sketch, cost.write, cost.column)
                rows.append((kind, recovery, *(1e3 * p for p in parts), cost.ratio, cost.cpu))
                if kind == DEFAULT:
                    maps = cost.maps
                    name = f"{subject.name}, {recovery}: column over HVP"
                    if quick:
                        figure = Figure(f"{name}, CPU of one thread", cost.thread, "≤", TARGET)
                    else:
                        figure = Figure(name, cost.ratio, "≤", TARGET)
                    figures.append(figure)
            print(table((*HEADER, "CPU / CPU"), rows))
            print(WORDS.format(blocks=subject.blocks, size=subject.size, maps=maps), flush=True)
    finish(figures)


def measure(subject: Subject, op: HessianOperator, kind: str, recovery: str, folder: Path) -> Cost:
    """The cost of the columns of the recovery's first round."""
    recipe = RECOVERIES[recovery]
    first = recipe.each_round(recipe.default, subject.outer, subject.inner, 0)[0]
    manifest = Manifest(
        size=op.shape[0],
        dtype="float32",
        block_size=subject.size,
        sketch=kind,
        seed=0,
        **asdict(first),
    )
    blocks = manifest.blocks()[: subject.blocks]
    start = time.perf_counter()
    measurer = Measurer(manifest)
    X = measurer.test_vectors(blocks[0])
    measurer.measure(Known(X), blocks[0])
    first = time.perf_counter() - start

    known = Known(op @ X)
    arrays = measurer.measure(known, blocks[0])
    vector = least_seconds(lambda: measurer.test_vectors(blocks[0]), budget=1.0)
    vector_and_sketch = least_seconds(lambda: measurer.measure(known, blocks[0]), budget=1.0)

    def multiply() -> None:
        for _ in blocks:
            op @ X

    with tempfile.TemporaryDirectory(dir=folder) as directory:
        array = MeasurementArray.create(Path(directory), manifest)
        write = least_seconds(lambda: array.write(blocks[0], arrays), budget=1.0)
        works = {
            "HVPs": lambda: clocks(multiply),
            "columns": lambda: clocks(
                lambda: fill(array, blocks, lambda b: measurer.measure(op, b))
            ),
        }
        turns = in_turns(works, subject.turns if kind == DEFAULT else 1)
    hvps, columns = (list(zip(*turns[name], strict=True)) for name in works)
    width = subject.size * len(blocks)
    return Cost(
        hvp=min(hvps[0]) / width,
        vector=vector / subject.size,
        sketch=(vector_and_sketch - vector) / subject.size,
        write=write / subject.size,
        column=min(columns[0]) / width,
        ratio=over(columns[0], hvps[0]),
        thread=over(columns[1], hvps[1]),
        cpu=over(columns[2], hvps[2]),
        maps=first - vector_and_sketch,
    )


def clocks(work: Callable[[], object]) -> tuple[float, float, float]:
    """Seconds by the clock, of the processor's time for this thread, and for all threads."""
    start = time.perf_counter(), time.thread_time(), time.process_time()
    work()
    wall, thread, cpu = time.perf_counter(), time.thread_time(), time.process_time()
    return wall - start[0], thread - start[1], cpu - start[2]


def memory_rate(size: int = 2**28) -> float:
    """Bytes a second that are read and written when memory is copied."""
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    return 2 * size / least_seconds(lambda: target.copy_(source))


if __name__ == "__main__":
    main()
