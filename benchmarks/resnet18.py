"""ResNet-18 on images of 224x224: a block measured, and what the paper's sketch would take.

    python benchmarks/resnet18.py [--quick]

A block is measured as `plan --calibrate` does it, of two numbers of synthetic datapoints, and
foreseen for the paper's 5,000, of which 250 are a batch. Takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time

import torch
from figures import Figure, finish, gemm_rate, machine, table
from slurm_overhead import say

from skerch.jobs import config, pipeline
from skerch.jobs.commands.calibrate import Pace, measure_pace
from skerch.jobs.commands.plan import duration
from skerch.jobs.config import Config
from skerch.jobs.launchers import local
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.run_dir.binding import bind
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs

DATAPOINTS, COLUMNS = 5000, 3000 + 30
FORWARD = 2 * 1.814e9  # operations of one image's (He, Zhang, Ren and Sun 2016: 1.8e9 products)
PAPER_MATVEC, PAPER_SETUP = 148.0, 5419.0  # seconds on its GPU, a job
SAMPLED = 500  # datapoints whose reading is timed


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer datapoints, no set-up")
    quick = parser.parse_args().quick
    counts, block = ((2, 4), 1) if quick else ((8, 16), 4)
    with tempfile.TemporaryDirectory(prefix="skerch-resnet-") as folder:
        paces = [pace(folder, count, block, quick) for count in counts]
        each = [p.matvec / count for p, count in zip(paces, counts, strict=True)]
        linear = Figure("twice the datapoints, over twice the time", each[1] / each[0], "≤", 1.15)
        least = FORWARD * 9 / gemm_rate(torch.float32)
        print(f"{machine()}, {paces[1].device}, strategy `{paces[1].strategy}`\n")
        rows = [
            (f"a matvec, {n} images", duration(p.matvec))
            for p, n in zip(paces, counts, strict=True)
        ]
        rows += [
            ("the same, an image", duration(each[1])),
            ("nine forward passes of an image at the gemm rate", duration(least)),
        ]
        print(table(("measured here", ""), rows) + "\n")
        figures = [linear]
        if not quick:
            figures.append(print_forecast(folder, paces[1], DATAPOINTS * each[1]))
    finish(figures)


def load(folder: str, datapoints: int, *overrides: str) -> Config:
    """The experiment with one Hessian, of the initial network and random images."""
    fixed = ("problem.synthetic=true", "hessian.subset=first", "hessian.splits=[test]")
    training = ("training.max_steps=0", "training.record_steps=[0]", "training.eval_samples=1")
    sizes = (f"run_dir={folder}/run-{datapoints}", f"hessian.datapoints={datapoints}")
    return config.load("imagenet_resnet18", [*fixed, *training, *sizes, *overrides])


def pace(folder: str, datapoints: int, block: int, quick: bool) -> Pace:
    """How fast a worker measures; in a hurry without the sketch map, which takes seconds."""
    say(f"a block of {block} matvecs, {datapoints} images")
    kind = ("sketch.kind=gaussian", "sketch.outer=2") if quick else ()
    return measure_pace(load(folder, datapoints, f"sketch.block_size={block}", *kind))


def print_forecast(folder: str, pace: Pace, matvec: float) -> Figure:
    """The paper's sketch here and as the paper measured it; by how much our set-up is shorter."""
    say(f"a worker's start, {SAMPLED} images")
    start, reading = import_seconds(), reading_seconds(folder) * DATAPOINTS / SAMPLED
    setup = start + reading + pace.start
    rows = [
        ("a matvec", duration(matvec), duration(PAPER_MATVEC)),
        ("matvecs, one worker", duration(COLUMNS * matvec), duration(COLUMNS * PAPER_MATVEC)),
        ("set-up of a job", duration(setup), duration(PAPER_SETUP)),
        ("of this Python and imports", duration(start), ""),
        ("of this datapoints read and checked", duration(reading), ""),
        ("of this sketch map and first matvec", duration(pace.start), ""),
    ]
    print(f"The paper's sketch: {DATAPOINTS:,} datapoints, outer 1500, inner 3000, probes 30.\n")
    print(table(("", "forecast, here", "the paper, a GPU"), rows) + "\n")
    return Figure("set-up of a job: the paper's over ours", PAPER_SETUP / setup, "≥", 50)


def reading_seconds(folder: str) -> float:
    """Of the datapoints and parameters from a run directory, by a worker."""
    wanted = load(folder, SAMPLED)
    run = RunDir(wanted.run_dir)
    bind(run, wanted)
    error = local.run_task(wanted, pipeline.tasks(wanted)[0])
    if error:
        sys.exit(error)
    begin = time.perf_counter()
    load_inputs(Context(run, wanted, method_name(wanted), 0, "test"))
    return time.perf_counter() - begin


def import_seconds() -> float:
    """Of a new Python until it has what a measurement task imports."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import skerch.jobs.stages.measure"], check=True)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
