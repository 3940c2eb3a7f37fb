"""ResNet-18 on images of 224x224: a block measured, and what the paper's sketch would take.

A block is measured as `plan --calibrate` does it, of two numbers of synthetic datapoints, and
foreseen for the paper's 5,000, of which 250 are a batch.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator

import torch

from benchmarks.harness import Benchmark, Figure, Options, clock, say, table
from benchmarks.rates import gemm_rate, machine
from benchmarks.runs import begin
from skerch.jobs import config
from skerch.jobs.commands.plan import duration
from skerch.jobs.commands.seigh.calibrate import measure_pace
from skerch.jobs.config import Config
from skerch.jobs.run_dir import method_name
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs

BENCHMARK = Benchmark("docs/performance.md", make="bench")
DATAPOINTS, COLUMNS = 5000, 3000 + 30
FORWARD = 2 * 1.814e9  # operations of one image's (He, Zhang, Ren and Sun 2016: 1.8e9 products)
PAPER_MATVEC, PAPER_SETUP = 148.0, 5419.0  # seconds on its GPU, a job
FEW, MANY = 8, 16  # images of a block
SAMPLED = 500  # datapoints whose reading is timed
IMPORTS = [sys.executable, "-c", "import skerch.jobs.stages.measure"]


def measure(options: Options) -> Iterator[str | Figure]:
    """A block here, and the paper's sketch here and as the paper measured it."""
    with tempfile.TemporaryDirectory(prefix="skerch-resnet-") as folder:
        say("two blocks")
        few, many = (measure_pace(load(folder, n, "sketch.block_size=4")) for n in (FEW, MANY))
        yield f"{machine()}, {many.device}, strategy `{many.strategy}`"
        image, least = many.matvec / MANY, FORWARD * 9 / gemm_rate(torch.float32)
        rows = [
            (f"a matvec, {FEW} images", duration(few.matvec)),
            (f"a matvec, {MANY} images", duration(many.matvec)),
            ("the same, an image", duration(image)),
            ("nine forward passes of an image at the gemm rate", duration(least)),
        ]
        yield table(("measured here", ""), rows)
        ratio = image / (few.matvec / FEW)
        yield Figure("twice the datapoints, over twice the time", ratio, "≤", 1.15)
        say(f"a worker's start, {SAMPLED} images")
        start = clock(lambda: subprocess.run(IMPORTS, check=True))
        reading = reading_seconds(load(folder, SAMPLED)) * DATAPOINTS / SAMPLED
    matvec, setup = DATAPOINTS * image, start + reading + many.start
    foreseen = [
        ("a matvec", duration(matvec), duration(PAPER_MATVEC)),
        ("matvecs, one worker", duration(COLUMNS * matvec), duration(COLUMNS * PAPER_MATVEC)),
        ("set-up of a job", duration(setup), duration(PAPER_SETUP)),
        ("of this Python and imports", duration(start), ""),
        ("of this datapoints read and checked", duration(reading), ""),
        ("of this sketch map and first matvec", duration(many.start), ""),
    ]
    yield f"The paper's sketch: {DATAPOINTS:,} datapoints, outer 1500, inner 3000, probes 30."
    yield table(("", "forecast, here", "the paper, a GPU"), foreseen)
    yield Figure("set-up of a job: the paper's over ours", PAPER_SETUP / setup, "≥", 50)


def load(folder: str, datapoints: int, *overrides: str) -> Config:
    """The experiment with one Hessian, of the initial network and random images."""
    fixed = ("problem.synthetic=true", "hessian.subset=first", "hessian.splits=[test]")
    training = ("training.max_steps=0", "training.record_steps=[0]", "training.eval_samples=1")
    sizes = (f"run_dir={folder}/run-{datapoints}", f"hessian.datapoints={datapoints}")
    return config.load("imagenet_resnet18", [*fixed, *training, *sizes, *overrides])


def reading_seconds(wanted: Config) -> float:
    """Of the datapoints and parameters from a run directory, by a worker."""
    run, _ = begin(wanted, first=1)
    return clock(lambda: load_inputs(Context(run, wanted, method_name(wanted), 0, "test")))
