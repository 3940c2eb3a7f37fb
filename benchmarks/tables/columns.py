"""What a measured column costs beside its Hessian-vector product, for each kind of sketch.

A column's test vector is made, multiplied, checked, compressed and written. --quick measures the
default sketch and recovery only, in smaller blocks. All is of one thread; the writer's is another.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.harness import Benchmark, Figure, Options, in_turns, over, say, table
from benchmarks.rates import least_seconds, machine, write_rate
from skerch import aslinearoperator
from skerch.curvature import HessianOperator
from skerch.curvature.memory import keep_freed_memory
from skerch.jobs.commands.check import sample_inputs
from skerch.jobs.config import Config, load
from skerch.jobs.stages.layout import array_manifest
from skerch.jobs.stages.measure import fill
from skerch.jobs.stages.operator import curvature_operator
from skerch.measurements.array import MeasurementArray
from skerch.measurements.measure import Measurer
from skerch.sketch_operators import KINDS

BENCHMARK = Benchmark("docs/performance.md", make="bench", quick=True)
DEFAULT = "sparse_sign"
TARGET = 1.15  # of a column over its HVP
HEADER = (
    "sketch", "recovery", "HVP", "test vector", "sketch", "write", "column", "column / HVP",
    "CPU / CPU",
)  # fmt: skip
CLOCKS = (time.perf_counter, time.thread_time, time.process_time)
WORDS = """
Milliseconds a column, of {blocks} blocks of {size}; the maps took {maps:.2f} s, once. Columns and
HVPs took turns. "sketch" is the compression with the check and the norm, and "write" a block's
alone, which hides behind the next block's matvecs. CPU is the time of all threads, and so the ratio
where the writer has no core to itself.
"""


def measure(options: Options) -> Iterator[str | Figure]:
    """A table a Hessian at the initial parameters on random data, of a row a sketch."""
    keep_freed_memory()
    torch.set_num_threads(1)
    quick, cases = options.quick, [(DEFAULT, "nystrom")]
    if not quick:
        others = ((kind, "nystrom") for kind in KINDS if kind != DEFAULT)
        cases += [(DEFAULT, "oversampled"), *others]
    yield f"{machine()}."
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    memory = 2 * 4 * len(source) / least_seconds(lambda: target.copy_(source))
    with tempfile.TemporaryDirectory(prefix="skerch-columns-") as folder:
        disk = write_rate(Path(folder, "rate"), 2**28 if quick else 2**30)
        for name, datapoints, outer, size, blocks, turns in (
            ("mnist_mini", 500, 355, 64, 6, 7 if quick else 15),
            ("cifar10_3c3d", 100, 1000, *((2, 3, 2) if quick else (16, 3, 3))),
        ):
            fixed = (
                f"run_dir={folder}/run", f"hessian.datapoints={datapoints}",
                f"sketch.outer={outer}", f"sketch.inner={2 * outer}", f"sketch.block_size={size}",
                "problem.synthetic=true", "launcher.device=cpu",
            )  # fmt: skip
            config = load(name, [*fixed, "sketch.rounds=1"])
            op = curvature_operator(config, sample_inputs(config))
            N, rows, maps = op.shape[0], [], 0.0
            floor = 1e3 * 4 * N * (2 / memory + 1 / disk)
            yield (
                f"**{name}**, N = {N:,}, {datapoints} datapoints, {outer} / {2 * outer}. A column "
                f"of 4 N = {4 * N / 1e6:.3g} MB is written to memory once, read once and written "
                f"to disk once: at {memory / 1e9:.1f} and {disk / 1e9:.2f} GB/s {floor:.3g} ms. "
                "A sparse sign map adds 8 N numbers."
            )
            with op.frozen():
                op.resolve(size)
                for kind, recovery in cases:
                    say(f"{name}, {kind}, {recovery}")
                    rounds = 1 if recovery == "oversampled" else 2
                    sketch = (
                        f"sketch.kind={kind}", f"sketch.recovery={recovery}",
                        f"sketch.rounds={rounds}",
                    )  # fmt: skip
                    number = turns if kind == DEFAULT else 1
                    config = load(name, [*fixed, *sketch])
                    parts, (wall, thread, cpu), took = costs(config, op, blocks, number)
                    rows.append((kind, recovery, *parts, wall, cpu))
                    if kind == DEFAULT:
                        what, maps = f"{name}, {recovery}: column over HVP", took
                        if quick:
                            yield Figure(f"{what}, CPU of one thread", thread, "≤", TARGET)
                        else:
                            yield Figure(what, wall, "≤", TARGET)
            yield table(HEADER, rows)
            yield WORDS.strip().format(blocks=blocks, size=size, maps=maps)


def costs(
    config: Config, op: HessianOperator, count: int, turns: int
) -> tuple[list[float], list[float], float]:
    """Milliseconds a column in the first round: HVP, vector, sketch, write, and all together.

    Also the ratios of column and HVP by each clock, and the seconds of the maps, once a worker.
    """
    N = op.shape[0]
    manifest = array_manifest(config, config.sketch.each_round()[0], N)
    block, *_ = blocks = manifest.blocks()[:count]
    start = time.perf_counter()
    measurer = Measurer(manifest)
    X = measurer.test_vectors(block)
    measurer.measure(aslinearoperator(lambda X: X, shape=(N, N)), block)
    first = time.perf_counter() - start

    Y = op @ X
    known = aslinearoperator(lambda _: Y, shape=(N, N))
    arrays = measurer.measure(known, block)
    vector = least_seconds(lambda: measurer.test_vectors(block), budget=1.0)
    vector_and_sketch = least_seconds(lambda: measurer.measure(known, block), budget=1.0)
    with tempfile.TemporaryDirectory(dir=Path(config.run_dir).parent) as directory:
        array = MeasurementArray.create(Path(directory), manifest)
        write = least_seconds(lambda: array.write(block, arrays), budget=1.0)
        works = {
            "HVPs": lambda: by_clocks(lambda: [op @ X for _ in blocks]),
            "columns": lambda: by_clocks(
                lambda: fill(array, blocks, lambda b: measurer.measure(op, b))
            ),
        }
        hvps, columns = (list(zip(*of, strict=True)) for of in in_turns(works, turns).values())
    ratios = [over(whole, alone) for whole, alone in zip(columns, hvps, strict=True)]
    hvp, column = (min(wall) / len(blocks) for wall, *_ in (hvps, columns))
    parts = hvp, vector, vector_and_sketch - vector, write, column
    return [1e3 * part / X.shape[1] for part in parts], ratios, first - vector_and_sketch


def by_clocks(work: Callable[[], object]) -> list[float]:
    """Seconds by the clock, of the processor's time for this thread, and for all threads."""
    starts = [now() for now in CLOCKS]
    work()
    return [now() - start for now, start in zip(CLOCKS, starts, strict=True)]
