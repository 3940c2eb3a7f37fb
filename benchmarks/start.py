"""How long a worker takes from its start to its first column, and what that is spent on.

    python benchmarks/start.py [--quick]

A measurement task is started as a program, and ended where its first product would begin: the
inputs are read and compared with the manifest, the sketch map is drawn, and the first test vectors
are there. The file cache is warm, the images are random, and one thread works.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from figures import Figure, finish, machine, table

from skerch.jobs import config
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.run_dir.binding import bind
from skerch.jobs.stages import layout
from skerch.jobs.stages.context import Context
from skerch.jobs.training.session import train

COMMON = (
    "training.max_steps=0", "training.record_steps=[0]", "training.eval_samples=10",
    "training.batch_size=10", "hessian.splits=[test]", "hessian.strategy=loop",
    "hessian.memory_format=preserve", "launcher.device=cpu", "launcher.threads=1",
    "problem.synthetic=true",
)  # fmt: skip
EXPERIMENTS = {
    "mnist_mini": [],
    "cifar10_3c3d": ["hessian.datapoints=100"],
    "imagenet_resnet18": [
        "hessian.datapoints=500", "hessian.subset=first", "hessian.batch_size=50",
    ],
}  # fmt: skip
LIMIT = 5.0  # seconds of the processor, which what else the machine does hardly lengthens
WORKER = """
import os, sys, time
laps = [time.monotonic()]
import torch
laps.append(time.monotonic())
from skerch.jobs.stages import measure
from skerch.jobs.stages import context as stage
laps.append(time.monotonic())
class Ending(measure.Measurer):
    def measure(self, op, block):
        laps.append(time.monotonic())
        self.test_vectors(block)
        laps.append(time.monotonic())
        print(*laps, time.process_time(), flush=True)
        os._exit(0)
measure.Measurer = Ending
stage.main("measure")
"""


class Start(NamedTuple):
    """The seconds of each part of a worker's start, and those of the processor in all."""

    python: float
    torch: float
    others: float
    inputs: float
    vectors: float
    processor: float

    @property
    def seconds(self) -> float:
        """From the call to the first product."""
        return sum(self[:-1])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="mnist_mini only")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="skerch-start-") as folder:
        runs = [
            prepare(name, Path(folder) / name) for name in list(EXPERIMENTS)[: 1 if quick else 3]
        ]
        turns = [[start(run) for run in runs] for _ in range(2 if quick else 5)]
    fastest = {
        run.path.name: min(starts, key=lambda start: start.seconds)
        for run, starts in zip(runs, zip(*turns, strict=True), strict=True)
    }
    floor = min(start.torch for turn in turns for start in turn)
    print(f"{machine()}; to import torch alone takes {floor:.2f} s\n")
    parts = ("Python", "torch", "other imports", "inputs", "map, test vectors")
    heads = ("seconds", *parts, "in all", "of the processor", "over import torch")
    rows = [
        (name, *s[:-1], s.seconds, s.processor, s.seconds / floor) for name, s in fastest.items()
    ]
    print(table(heads, rows) + "\n")
    finish(
        [
            Figure(f"worker start to first column, {name}", start.processor, "≤", LIMIT, " s")
            for name, start in fastest.items()
        ]
    )


def prepare(name: str, path: Path) -> RunDir:
    """A run directory in which the first task of one Hessian can be started."""
    print(f"{name}: a run directory", file=sys.stderr, flush=True)
    experiment = config.load(name, [f"run_dir={path}", *COMMON, *EXPERIMENTS[name]])
    run = RunDir(path)
    bind(run, experiment)
    train(run, experiment)
    layout.run(Context(run, experiment, method_name(experiment), 0, "test"))
    return run


def start(run: RunDir) -> Start:
    """A worker, ended where its first product would begin."""
    print(f"{run.path.name}: a worker", file=sys.stderr, flush=True)
    begin = time.monotonic()
    command = [sys.executable, "-c", WORKER, str(run.path), "--tasks", "0"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    *laps, processor = map(float, done.stdout.split())
    return Start(*(b - a for a, b in zip([begin, *laps], laps, strict=False)), processor)


if __name__ == "__main__":
    main()
