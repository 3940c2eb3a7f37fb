"""The top of a GPT-2's Hessian by `run`, killed and resumed, beside what `plan` foretells.

124 million random parameters, 8 sequences of 64 random tokens, columns on disk: 20 GB in TMPDIR.
With --quick it is a network of 0.2 million.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness import ROOT, Benchmark, Figure, Options, apart, say, table
from benchmarks.rates import machine
from skerch.jobs import config
from skerch.jobs.commands.plan import python_memory
from skerch.jobs.commands.seigh.calibrate import measure_pace
from skerch.jobs.commands.seigh.plan import run_disk
from skerch.jobs.launchers.preflight import count_parameters
from skerch.jobs.run_dir import RunDir

BENCHMARK = Benchmark("docs/performance.md", make="bench")
EXPERIMENT = str(ROOT / "benchmarks" / "gpt2.yaml")
SMALL = ["problem.layers=2", "problem.width=64", "problem.heads=2", "problem.vocabulary=500"]
STEP, SPLIT = 0, "train"
GIB = 2**30


def measure(options: Options) -> Iterator[str | Figure]:
    """What is foretold, what a run of two attempts takes, and the ratios."""
    with tempfile.TemporaryDirectory(prefix="skerch-gpt2-") as folder:
        overrides = [f"run_dir={folder}/run", *(SMALL if options.quick else [])]
        wanted = config.load(EXPERIMENT, overrides)
        run = RunDir(wanted.run_dir)
        N = count_parameters(wanted)
        say("plan --calibrate")
        product, memory = apart(foretold, overrides)
        disk, _ = run_disk(wanted, N)
        yield f"{machine()}, N = {N:,}"
        say("run, killed")
        columns = wanted.sketch.inner + wanted.sketch.probes
        _, first = attempt(run, overrides, kill_at=columns // wanted.sketch.block_size // 2)
        kept = blocks(run)
        say("run, resumed")
        seconds, second = attempt(run, overrides)
        again = [path.name for path, mark in kept.items() if blocks(run)[path] != mark]
        rest = columns - wanted.sketch.block_size * len(kept)
        files = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
        rows = [
            ("seconds a product, passes over the columns included", product, seconds / rest),
            ("peak memory, GiB", memory / GIB, max(first, second) / GIB),
            ("files, GB", disk / 1e9, files / 1e9),
        ]
        yield table(("", "foretold", "measured"), rows)
        for name, told, found in rows[1:]:
            yield Figure(
                f"{name}: measured over foretold, off by", abs(found / told - 1), "≤", 0.25
            )
        yield Figure("blocks that a kill took", float(len(again)), "≤", 0)


def foretold(overrides: Sequence[str]) -> tuple[float, int]:
    """Seconds a product and the memory of a worker, as `plan --calibrate` measures them."""
    pace = measure_pace(config.load(EXPERIMENT, list(overrides)))
    return pace.matvec, python_memory()


def attempt(run: RunDir, overrides: Sequence[str], kill_at: int | None = None) -> tuple[float, int]:
    """The seconds of a run and its peak memory; it is killed once there are so many blocks."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "skerch", "run", EXPERIMENT, *overrides], stdout=sys.stderr
    )
    pid = 0
    while not pid:
        time.sleep(0.05)
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if not pid and kill_at is not None and len(blocks(run)) >= kill_at:
            process.kill()
    if kill_at is None and status:
        raise RuntimeError(f"the run ended with status {status}")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024


def blocks(run: RunDir) -> dict[Path, int]:
    """The files of blocks, with when they were written."""
    found = run.step("seigh", STEP, SPLIT).path.glob("measurements/round-*/blocks/*.h5")
    return {path: path.stat().st_mtime_ns for path in found}
