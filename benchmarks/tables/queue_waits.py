"""How often a run waits in a queue, with tasks that share jobs and with a job a task.

Jobs, and the waits in the longest path of jobs, of the plan; then seconds from `submit` to results
on slurm/devcluster, where each job, or element of an array, sleeps for some seconds before it
begins: twenty minutes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.devcluster import CORES, cluster, skerch, wait_for_all
from benchmarks.harness import Benchmark, Figure, Options, say, table
from skerch.jobs import config
from skerch.jobs.config.resources import resources
from skerch.jobs.launchers.slurm.jobs import missing_jobs
from skerch.jobs.launchers.slurm.observed import Submitted
from skerch.jobs.run_dir import RunDir

BENCHMARK = Benchmark("docs/performance.md", make="overhead")
FUSE = ("launcher.fuse=false", "launcher.fuse=true")
RUNS = {
    "digits": ("digits",),
    "digits, arrays of several tasks": ("digits", "launcher.blocks_per_task=1"),
    "mnist_mini": ("mnist_mini", "problem.synthetic=true", "launcher.blocks_per_task=100"),
    "mnist_mini, arrays of several tasks": ("mnist_mini", "problem.synthetic=true"),
}
SMALL = (
    *("digits", "cluster=devcluster", "training.record_steps=[300]", "hessian.splits=[test]"),
    *("sketch.outer=20", "sketch.inner=40", "sketch.block_size=8", "launcher.threads=1"),
)
WAITS = (0, 30)  # seconds of a job
NODES = 4  # as many elements of an array wait at once


def measure(options: Options) -> Iterator[str | Figure]:
    """The plan of both, then both on a Slurm."""
    rows = []
    for name, asked in RUNS.items():
        found = [planned(*asked, "cluster=devcluster", fuse) for fuse in FUSE]
        rows.append((name, *(f"{a} → {b}" for a, b in zip(*found, strict=True))))
        several, (_, waits) = "several" in name, found[1]
        yield Figure(f"{name}: waits of a Hessian", waits - 1, "≤", 4 if several else 1)
    head = ("experiment", "jobs, by `launcher.fuse`", "waits, one after the other")
    yield "\n\n".join(("The plan; a wait more is that of the training", table(head, rows)))
    rows, ratios = [], {}
    for name, number in (("a task a round", 9), ("arrays of 2 to 4", 2)):
        asked = (*SMALL, f"launcher.blocks_per_task={number}")
        for wait in WAITS[: 1 + (not options.quick)]:
            took = [submitted(wait, *asked, fuse) for fuse in FUSE]
            rows.append((f"{name}, a wait of {wait} s", *(f"{each:.0f} s" for each in took)))
            if wait:  # else what the machine does meanwhile decides
                ratios[f"{name}, a wait of {wait} s"] = took[1] / took[0]
    yield f"From `submit` to the overlap of one Hessian, two rounds, {CORES} cores as {NODES} nodes"
    yield table(("", "a job a task", "shared"), rows)
    for name, ratio in ratios.items():
        yield Figure(f"{name}: shared over a job a task", ratio, "≤", 0.75)


def planned(*asked: str) -> tuple[int, int]:
    """The jobs of a run, and how many wait one after the other."""
    experiment, *overrides = asked
    with tempfile.TemporaryDirectory() as folder:
        wanted = config.load(experiment, [*overrides, f"run_dir={folder}/run"], queued=True)
        run = RunDir(wanted.run_dir)
        jobs, _, _ = missing_jobs(run, wanted, Submitted([], {}), resources(wanted))
    waits: dict[str, int] = {}
    for job in jobs:
        needs = [waits[n] for task in job.everything for n in task.needs if n in waits]
        waits |= dict.fromkeys((task.id for task in job.everything), max(needs, default=0) + 1)
    return len(jobs), max(waits.values())


def submitted(wait: int, *asked: str) -> float:
    """Seconds from `submit` to the results, where each job waits for some seconds as it begins."""
    say(f"{wait} s a job: {' '.join(asked)}")
    with tempfile.TemporaryDirectory(prefix="skerch-waits-") as folder, cluster(folder, NODES):
        run, begin = Path(folder, "run"), time.time()
        skerch("submit", *asked, f"run_dir={run}", f"resources.all.setup=sleep {wait}")
        wait_for_all()
        return (run / "seigh" / "step-000300-test" / "overlap.json").stat().st_mtime - begin
