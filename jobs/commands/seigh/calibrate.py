"""How fast a worker is: the first block of the first round, and products, timed and thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from skerch.curvature.checks import fingerprint
from skerch.jobs.commands.calibrate import operator_here, repeated
from skerch.jobs.config import Config
from skerch.jobs.stages.layout import array_manifest
from skerch.measurements.measure import Measurer

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
    """Time a block, as `operator_here` has it."""
    with operator_here(config, "measure") as op:
        manifest = array_manifest(config, config.sketch.each_round()[0], op.shape[0])
        block = manifest.blocks()[0]
        columns = block.stop - block.start
        strategy = op.resolve(columns).strategy
        begin = time.perf_counter()
        fingerprint(op)  # as a worker does
        measurer = Measurer(manifest, op.device)
        before = time.perf_counter() - begin

        def measure() -> None:
            for array in measurer.measure(op, block).values():
                array.cpu()  # waits for the device

        first, seconds = repeated(measure)
    A = torch.randn(SIZE, SIZE, dtype=torch.float64, device="cpu")
    return Pace(
        seconds / columns,
        max(0.0, before + first - seconds),
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
