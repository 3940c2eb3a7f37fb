"""What the guards cost: their seconds beside those of the run that they are in.

    python benchmarks/guards.py [--root MNIST] [--quick]

mnist_mini in the paper's setting, 355 eigenpairs from 710 products, trained and sketched in this
process at eleven steps of both splits. Each guard is timed where the run calls it. Workers compare
their operator with the array's before each task, and a vectorised block with products one by one.
Python's garbage collection, whose 15 ms fall now on one call and now on another, is off.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from figures import Figure, finish, machine, table

from skerch.curvature import backends, checks
from skerch.curvature.hessian import HessianOperator
from skerch.jobs.config import load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.stages import layout, measure

TARGET = 0.02


def main() -> None:
    """Print the table, and the share beside its target."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", default="../shared/data", help="the folder with MNIST/raw")
    parser.add_argument("--quick", action="store_true", help="one Hessian")
    options = parser.parse_args()
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

    checks.GUARDS = tuple(timed(guard.__name__, guard) for guard in checks.GUARDS)
    compared = timed("fingerprint", checks.fingerprint)

    def fingerprint(op: HessianOperator) -> dict[str, float]:
        op @ op.vector()  # prepares what the first block takes over
        return compared(op)

    layout.fingerprint = measure.fingerprint = fingerprint
    backends.compare = timed("compare", backends.compare)
    with tempfile.TemporaryDirectory() as folder:
        few = ["training.record_steps=[100]", "hessian.splits=[test]"]
        config = load(
            "mnist_mini",
            [
                f"run_dir={folder}/run",
                f"problem.root={options.root}",
                *(few if options.quick else []),
            ],
        )
        start = time.perf_counter()
        with redirect_stdout(sys.stderr):
            failures = complete(config)
        total = time.perf_counter() - start
    if failures:
        raise SystemExit("\n".join(failures.values()))
    hessians = len(config.training.record_steps) * len(config.hessian.splits)
    print(f"\n{machine()}; {hessians} Hessians, {total:.1f} s with the training\n")
    rows = [(name, calls[name], 1e3 * s, f"{s / total:.2%}") for name, s in seconds.items()]
    print(table(["guard", "calls", "ms in all", "share of the run"], rows), end="\n\n")
    finish([Figure("the guards' share of a run", sum(seconds.values()) / total, "≤", TARGET)])


if __name__ == "__main__":
    main()
