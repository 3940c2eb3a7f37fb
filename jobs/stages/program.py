"""The program around every stage: the options, and the threads and kernels that keep its bits.

python -m skerch.jobs.stages.<stage> RUN [--name seigh] [--step 300] [--split test]
                                         [--round 1] [--tasks 3,5-9]

The last two are of stages whose tasks are of a round, or of an array.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from skerch.errors import SkerchError
from skerch.files import print_always, refusals_named
from skerch.jobs.config import Config, ConfigError
from skerch.jobs.config.stages import STAGES
from skerch.jobs.pipeline.ranges import parse_ranges
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.stages.context import Context


def execute(stage: str, context: Context) -> None:
    """Run a stage in this process, with the threads and kernels that keep its bits the same."""
    settle(stage, context)
    import_module(f"skerch.jobs.stages.{stage}").run(context)


def settle(stage: str, context: Context) -> None:
    """Set the threads, kernels and memory of a stage for this process."""
    import torch

    from skerch.curvature.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(_threads(stage, context))
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False


def main(stage: str) -> None:
    """The program of a stage: on one Hessian, or on all of those that the options leave open."""
    parser = argparse.ArgumentParser(prog=f"python -m skerch.jobs.stages.{stage}")
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("--name", help="the method's folder; default: that of the latest run")
    parser.add_argument("--step", type=int, help="a recorded step; default: all")
    parser.add_argument("--split", help="default: all")
    if first := STAGES[stage].first_round:
        parser.add_argument("--round", type=int, default=first, help=f"default: {first}")
    if STAGES[stage].array:
        parser.add_argument("--tasks", help="as in 3,5-9; default: all")
    options = parser.parse_args()
    print_always()
    try:
        with refusals_named():
            run = RunDir(options.run)
            asked = run.load(options.name)
            config, name = run.grown(asked), method_name(asked)
            part = {key: vars(options)[key] for key in ("round", "tasks") if key in options}
            if part.get("tasks") is not None:
                part["tasks"] = parse_ranges(part["tasks"])
            for step, split in _hessians(stage, [asked, config], options.step, options.split):
                execute(stage, Context(run, config, name, step, split, progress=_print, **part))
    except SkerchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def _hessians(
    stage: str, configs: Sequence[Config], step: int | None, split: str | None
) -> list[tuple[int | None, str | None]]:
    """The steps and splits of the first config that has such; one of neither for the training."""
    if stage == "train":
        return [(None, None)]
    for config in configs:
        steps, splits = config.training.record_steps, config.hessian.splits
        if (step is None or step in steps) and (split is None or split in splits):
            break
    if step is not None and step not in steps:
        raise ConfigError(f"--step {step} is not recorded; there are {steps}.")
    if split is not None and split not in splits:
        raise ConfigError(f"--split {split} is not in hessian.splits; there are {splits}.")
    return [(s, p) for s in steps for p in splits if step in (None, s) and split in (None, p)]


def _threads(stage: str, context: Context) -> int:
    """What the method's files say; before there is one, `launcher.threads`.

    By default they are OMP_NUM_THREADS; where that is not set, the training, which runs alone, gets
    all usable cores, and a worker an equal share.
    """
    launcher = context.config.launcher
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    recorded = None if context.step is None else context.provenance
    if recorded is not None:
        return recorded.threads
    share = max(1, (cores or 1) // (1 if stage == "train" else launcher.workers))
    return launcher.threads or omp_threads() or share


def omp_threads() -> int | None:
    """The threads by OMP_NUM_THREADS, in a list those of its first level; None if it has none."""
    number = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(number) if re.fullmatch(r"0*[1-9]\d{0,2}", number, re.ASCII) else None


def _print(done: int, total: int, unit: str) -> None:
    print(f"{done}/{total} {unit}" if total else f"{done} {unit}", flush=True)
