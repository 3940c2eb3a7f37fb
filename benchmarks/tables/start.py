"""How long a worker takes from its start to its first column, and what that is spent on.

A measurement task is started as a program, and ended where its first product would begin: the
inputs are read and compared with the manifest, the sketch map is drawn, and the first test vectors
are there. The guard that takes a product is left out: `guards` has it. The file cache is warm, the
images are random, and one thread works.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise

from benchmarks.harness import Benchmark, Figure, Options, in_turns, say, table
from benchmarks.rates import machine
from benchmarks.runs import begin
from skerch.jobs import config

BENCHMARK = Benchmark("docs/performance.md", make="bench", quick=True)
COMMON = (
    "training.max_steps=0", "training.record_steps=[0]", "training.eval_samples=10",
    "training.batch_size=10", "hessian.splits=[test]", "hessian.strategy=loop",
    "hessian.memory_format=preserve", "launcher.device=cpu", "launcher.threads=1",
    "problem.synthetic=true", "sketch.rounds=2",
)  # fmt: skip
EXPERIMENTS = {
    "mnist_mini": [],
    "cifar10_3c3d": ["hessian.datapoints=100"],
    "imagenet_resnet18": [
        "hessian.datapoints=500", "hessian.subset=first", "hessian.batch_size=50",
    ],
}  # fmt: skip
LIMIT = 5.0  # seconds of the processor, which what else the machine does hardly lengthens
PARTS = ("Python", "torch", "other imports", "inputs", "map, test vectors")
WORKER = """
import os, sys, time
laps = [time.monotonic()]
import torch
laps.append(time.monotonic())
from skerch.jobs.stages import measure, program
laps.append(time.monotonic())
class Ending(measure.Measurer):
    def measure(self, op, block):
        laps.append(time.monotonic())
        self.test_vectors(block)
        laps.append(time.monotonic())
        print(*laps, time.process_time(), flush=True)
        os._exit(0)
measure.Measurer = Ending
measure.require_same = lambda op, context: None
program.main("measure")
"""


def measure(options: Options) -> Iterator[str | Figure]:
    """A row an experiment, of its fastest start."""
    names, here = list(EXPERIMENTS)[: 1 if options.quick else None], machine()
    with tempfile.TemporaryDirectory(prefix="skerch-start-") as folder:
        for name in names:
            say(f"{name}: a run directory")
            overrides = (f"run_dir={folder}/{name}", *COMMON, *EXPERIMENTS[name])
            begin(config.load(name, overrides), first=2)
        works = {name: lambda name=name: start(f"{folder}/{name}") for name in names}
        found = in_turns(works, 1 if options.quick else 5)
    floor = min(parts[1] for starts in found.values() for parts, _ in starts)
    yield f"{here}; to import torch alone takes {floor:.2f} s"
    fastest = {name: min(starts, key=lambda start: sum(start[0])) for name, starts in found.items()}
    rows = (
        (name, *parts, sum(parts), processor, sum(parts) / floor)
        for name, (parts, processor) in fastest.items()
    )
    yield table(("seconds", *PARTS, "in all", "of the processor", "over import torch"), rows)
    for name, (_, processor) in fastest.items():
        yield Figure(f"worker start to first column, {name}", processor, "≤", LIMIT, " s")


def start(run: str) -> tuple[list[float], float]:
    """Seconds of the parts of a worker's start, and those of the processor in all."""
    say(f"{run}: a worker")
    begun = time.monotonic()
    command = [sys.executable, "-c", WORKER, run, "--tasks", "0"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    *laps, processor = map(float, done.stdout.split())
    return [later - earlier for earlier, later in pairwise([begun, *laps])], processor
