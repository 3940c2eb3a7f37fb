"""How fast a worker is: the first block of the first round, and products, timed and thrown away."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from skerch.curvature.checks import fingerprint
from skerch.jobs.commands.check import sample_inputs
from skerch.jobs.config import Config
from skerch.jobs.config.resources import resources
from skerch.jobs.problems import user_code
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.layout import array_manifest
from skerch.jobs.stages.operator import curvature_operator
from skerch.jobs.stages.program import omp_threads, settle
from skerch.jobs.stages.sketch import SketchFiles
from skerch.measurements.measure import Measurer

REPETITIONS = 7  # at most, of which the median counts …
PATIENCE = 10.0  # … and none begins after so many seconds
SIZE = 500  # of the matrices of products and eigenproblems


@dataclass(frozen=True)
class Pace:
    """How fast a worker measures here, and by which means."""

    matvec: float  # seconds of one, with its test vector and its sketches, in a full block
    start: float  # seconds besides, once a task: sketch maps, first use of network and device
    device: str
    threads: int
    strategy: str
    gemm: float  # float64 operations a second of matrix products
    eigh: float  # seconds of an eigenproblem of size n over n³


def measure_pace(config: Config) -> Pace:
    """Time a block of the last step's parameters, as far as `sample_inputs` finds them.

    All is as a worker would do it, with the strategy and threads of the layout if there is one, and
    else OMP_NUM_THREADS or the CPUs of `resources.measure`; nothing is written.

    Raises SkerchError where the Hessian cannot be had or is not finite.
    """
    launcher, cpus = config.launcher, resources(config)["measure"].cpus
    threads = launcher.threads or omp_threads() or (cpus and min(cpus, os.cpu_count() or 1))
    config = replace(config, launcher=replace(launcher, threads=threads))
    step, split = config.training.record_steps[-1], config.hessian.splits[-1]
    context = Context(RunDir(config.run_dir), config, method_name(config), step, split)
    settle("measure", context)
    inputs = sample_inputs(config)
    recorded = context.provenance
    with user_code("A block cannot be measured"):
        op = curvature_operator(config, inputs, recorded)
    with user_code("A block cannot be measured"), op.frozen():
        manifest = array_manifest(config, SketchFiles(context).which_round(), op.shape[0])
        block = manifest.blocks()[0]
        columns = block.stop - block.start
        op.verify()
        strategy = op.resolve(columns).strategy
        begin = time.perf_counter()
        fingerprint(op)  # as a worker does
        measurer, ends = Measurer(manifest, op.device), [time.perf_counter()]
        while len(ends) < 2 or (len(ends) <= REPETITIONS and ends[-1] < begin + PATIENCE):
            for array in measurer.measure(op, block).values():
                array.cpu()  # waits for the device
            ends.append(time.perf_counter())
    seconds = statistics.median(after - before for before, after in pairwise(ends))
    start = max(0.0, ends[1] - begin - seconds)
    A = torch.randn(SIZE, SIZE, dtype=torch.float64, device="cpu")
    return Pace(
        seconds / columns,
        start,
        op.device.type,
        torch.get_num_threads(),
        strategy,
        gemm=2 * SIZE**3 / _least(lambda: A @ A),
        eigh=_least(lambda: torch.linalg.eigh(A + A.T)) / SIZE**3,
    )


def _least(work: Callable[[], object]) -> float:
    """The least seconds of three times some work."""
    ends = [time.perf_counter()]
    for _ in range(3):
        work()
        ends.append(time.perf_counter())
    return min(after - before for before, after in pairwise(ends))
