"""What the guards cost: their seconds beside those of the run that they are in.

mnist_mini in the paper's setting, 355 eigenpairs from 710 products, trained and sketched in this
process at eleven steps of both splits. Each guard is timed where the run calls it. Workers compare
their operator with the array's before each task, and a vectorised block with products one by one.
Python's garbage collection, whose 15 ms fall now on one call and now on another, is off.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

from benchmarks.harness import Benchmark, Figure, Options, table
from benchmarks.rates import machine
from skerch.curvature import checks, operator
from skerch.curvature.hessian import HessianOperator
from skerch.jobs.config import load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.stages import layout
from skerch.jobs.stages import measure as measuring

BENCHMARK = Benchmark("docs/performance.md", make="bench")
TARGET = 0.02


def measure(options: Options) -> Iterator[str | Figure]:
    """A row a guard."""
    gc.disable()
    seconds, calls = Counter[str](), Counter[str]()

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                seconds[name] += time.perf_counter() - start
                calls[name] += 1

        return call

    HessianOperator.checks = tuple(timed(c.__name__, c) for c in HessianOperator.checks)
    compared = timed("fingerprint", checks.fingerprint)

    def fingerprint(op: HessianOperator) -> dict[str, float]:
        op @ op.vector()  # prepares what the first block takes over
        return compared(op)

    layout.fingerprint = measuring.fingerprint = fingerprint
    operator.compare = timed("compare", operator.compare)
    with tempfile.TemporaryDirectory() as folder:
        config = load("mnist_mini", [f"run_dir={folder}/run", f"problem.root={options.root}"])
        start = time.perf_counter()
        with redirect_stdout(sys.stderr):
            failures = complete(config)
        total = time.perf_counter() - start
    if failures:
        raise RuntimeError("\n".join(failures.values()))
    hessians = len(config.training.record_steps) * len(config.hessian.splits)
    yield f"{machine()}; {hessians} Hessians, {total:.1f} s with the training"
    rows = [(name, calls[name], 1e3 * s, f"{s / total:.2%}") for name, s in seconds.items()]
    yield table(("guard", "calls", "ms in all", "share of the run"), rows)
    yield Figure("the guards' share of a run", sum(seconds.values()) / total, "≤", TARGET)
