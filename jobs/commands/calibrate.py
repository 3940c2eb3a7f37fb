"""How fast products are here: an operator as a worker has it, and work timed and thrown away."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

from skerch.curvature.operator import LossCurvature
from skerch.jobs.commands.check import sample_inputs
from skerch.jobs.config import Config
from skerch.jobs.config.resources import resources
from skerch.jobs.problems import user_code
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.operator import curvature_operator
from skerch.jobs.stages.program import omp_threads, settle

REPETITIONS = 7  # at most, of which the median counts …
PATIENCE = 10.0  # … and none begins after so many seconds


@contextmanager
def operator_here(config: Config, stage: str) -> Iterator[LossCurvature]:
    """The operator of the last step's parameters, as far as `sample_inputs` finds them.

    All is as a worker of a stage would have it, with the strategy and threads of what is there, and
    else OMP_NUM_THREADS or the CPUs of the stage's resources; nothing is written.

    Raises SkerchError where the Hessian cannot be had or is not finite.
    """
    launcher, cpus = config.launcher, resources(config)[stage].cpus
    threads = launcher.threads or omp_threads() or (cpus and min(cpus, os.cpu_count() or 1))
    config = replace(config, launcher=replace(launcher, threads=threads))
    step, split = config.training.record_steps[-1], config.hessian.splits[-1]
    context = Context(RunDir(config.run_dir), config, method_name(config), step, split)
    settle(stage, context)
    inputs, recorded = sample_inputs(config), context.provenance
    with user_code("A block cannot be measured"):
        op = curvature_operator(config, inputs, recorded)
    with user_code("A block cannot be measured"), op.frozen():
        op.verify()
        yield op


def repeated(work: Callable[[], object]) -> tuple[float, float]:
    """The seconds that some work takes: the first time, and the median of some times after it."""
    ends = [time.perf_counter()]
    begin = ends[0]
    while len(ends) < 2 or (len(ends) <= REPETITIONS and ends[-1] < begin + PATIENCE):
        work()
        ends.append(time.perf_counter())
    times = [after - before for before, after in pairwise(ends)]
    return times[0], statistics.median(times)
