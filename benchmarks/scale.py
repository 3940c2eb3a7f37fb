"""How long runs take on any number of workers: a scheduler's model, checked, and what it foresees.

    python benchmarks/scale.py [--quick] [--figure docs/images/scale.png]

The model (benchmarks/scheduler.py) replays the task times of one worker. Here it is checked on
slurm/devcluster with 1 to 6 nodes, and told what runs of other sizes cost (jobs/costs.py),
which some runs check. --quick checks it on threads. Takes half an hour.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import matplotlib.figure
import slurm_overhead
import torch
from costs import work
from figures import (
    Figure,
    drop_cache,
    finish,
    gemm_rate,
    least_seconds,
    machine,
    read_rate,
    table,
    write_rate,
)
from scheduler import Recording, Spans, Workers, makespan, recording, replay, spans
from slurm_overhead import CORES, say, squeue

from skerch import aslinearoperator
from skerch.analysis.figures import BLACK, BLUE, GREY, LEGEND, VERMILLION, save
from skerch.jobs import config, pipeline
from skerch.jobs.commands import check
from skerch.jobs.commands.costs import Machine, costs
from skerch.jobs.commands.plan import duration
from skerch.jobs.config import Config
from skerch.jobs.launchers import local
from skerch.jobs.pipeline import Task
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import bind
from skerch.jobs.stages import operator as operators
from skerch.jobs.stages.layout import array_manifest
from skerch.measurements.measure import Measurer

NODES = 6
POINTS = [(N, inner) for N in (10**4, 10**5, 10**6) for inner in (100, 400)]
SIZES = (10**4, 10**5, 10**6, 10**7)
INNERS = (100, 400, 1000, 4000)
COUNTS = (1, 4, 16, 64, 256)
DATAPOINTS, FORWARDS = 500, 9  # of a matvec in the grid: 9 forward passes of each datapoint, of
NETWORKS = {"dense": 2, "convolutional": 300}  # operations a parameter (ResNet-18 has 310)
PARTS = ("HVPs", "sketch", "disk", "Gram", "eigh", "start-up", "Slurm")
HEADS = ("workers", "first task to last", "forecast", "error")
EXPERIMENT = """
problem: {factory: "quadratic:make", n: 3000}
training: {max_steps: 0, record_steps: [0], batch_size: 1}
hessian: {splits: [test], datapoints: 1, subset: first, strategy: loop}
sketch: {outer: 42, inner: 84, probes: 2, block_size: 1}
launcher: {threads: 1}
cluster: devcluster
resources: {all: {cpus: 4, memory: 2G}, measure: {throttle: null}}
"""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a third of a minute")
    parser.add_argument("--figure", type=Path, default=Path("docs/images/scale.png"))
    options = parser.parse_args()
    drawing = options.figure.absolute()
    with tempfile.TemporaryDirectory(prefix="skerch-scale-") as folder:
        os.chdir(folder)
        Path("scale.yaml").write_text(EXPERIMENT)
        shutil.copy(Path(__file__).with_name("quadratic.py"), folder)
        if options.quick:
            figures = [on_threads(seconds=0.12)]
        else:
            print(f"{machine()}\n")
            slurm, recorded = on_devcluster(seconds=2.0)
            points, here = at_points()
            figures = [slurm, points]
            foresee(replace(here, start=recorded.start), recorded, drawing)
    finish(figures)


def load(*overrides: str) -> Config:
    """The experiment of this script."""
    return config.load("scale.yaml", overrides)


# The model of the scheduler.


def on_devcluster(seconds: float) -> tuple[Figure, Recording]:
    """Forecasts for 1 to 6 nodes from the run of one, beside runs whose products sleep."""
    one, rows = None, []
    with slurm_overhead.cluster(Path.cwd(), NODES):
        for count in range(1, NODES + 1):
            run = submit(count, seconds)
            tasks, seen = pipeline.tasks(run.load()), spans(run.task_records)
            one = one or recording(tasks, seen, seconds)  # a product checks the loss
            rows.append(compare(count, tasks, seen, one, CORES))
    assert one is not None
    print(
        f"**The scheduler's model** on slurm/devcluster, of whose nodes each takes one task at a "
        f"time: 22 measurement tasks of 4 products, which sleep {seconds:g} s each, in two rounds. "
        f"From the run of one node: {one.start:.1f} s for the start of a task, for which the nodes "
        f"compete with {CORES} cores, {one.refill:.1f} s from a task to the next on a node, and "
        f"{one.chain:.1f} s from a stage to the next.\n"
    )
    print(table(HEADS, rows) + "\n", flush=True)
    return worst_of(rows, f"1 to {NODES} nodes"), one


def compare(
    count: int, tasks: list[Task], seen: Spans, one: Recording, cores: int
) -> tuple[int, str, str, str]:
    """A row on how long a run took and should have taken."""
    took, foreseen = makespan(seen), makespan(replay(tasks, one.work, one.workers(count, cores)))
    error = 100 * (foreseen / took - 1)
    say(f"{count} workers: {took:.1f} s, forecast {foreseen:.1f} s")
    return count, f"{took:.1f} s", f"{foreseen:.1f} s", f"{error:+.1f} %"


def worst_of(rows: list[tuple[int, str, str, str]], which: str) -> Figure:
    """The largest error of some rows."""
    worst = max(abs(float(row[-1].split()[0])) for row in rows)
    return Figure(f"forecast for {which}: worst error", worst, "≤", 15, " %")


def submit(nodes: int, seconds: float) -> RunDir:
    """A run on the first nodes of the devcluster, once it has ended."""
    run = RunDir(Path(f"run-{nodes}"))
    overrides = [f"run_dir={run.path}", f"problem.seconds={seconds}"]
    if nodes < NODES:
        overrides.append(f"resources.all.exclude=n[{nodes + 1}-{NODES}]")
    slurm_overhead.skerch("submit", "scale.yaml", *overrides)
    while squeue("-h", "-t", "PENDING,RUNNING,COMPLETING"):
        time.sleep(0.5)
    if pipeline.missing(pipeline.tasks(run.load())):
        sys.exit(slurm_overhead.skerch("status", str(run.path))[0])
    return run


def on_threads(seconds: float) -> Figure:
    """Forecasts for one to three threads from the run of one, whose products sleep."""
    by_threads(1, 0.0)  # all imports
    one, rows = None, []
    for count in (1, 2, 3):
        tasks, seen = by_threads(count, seconds)
        one = one or recording(tasks, seen, seconds)  # a product checks the loss
        rows.append(compare(count, tasks, seen, one, cores=1))
    print(table(HEADS, rows) + "\n")
    return worst_of(rows, "1 to 3 threads")


def by_threads(count: int, seconds: float) -> tuple[list[Task], Spans]:
    """A run by as many threads of this process, and when each task ran.

    The figures at the end are left out, as they do not know threads.
    """
    wanted = load(
        f"run_dir=run-{count}-{seconds}",
        f"problem.seconds={seconds}",
        "sketch.outer=11",
        "sketch.inner=22",
        "launcher.blocks_per_task=2",
    )
    run, tasks = RunDir(wanted.run_dir), pipeline.tasks(wanted)[:-1]
    bind(run, wanted)
    ends: dict[str, Future[None]] = {}

    def after_needs(task: Task) -> None:
        for need in task.needs:
            ends[need].result()
        do(wanted, task)

    with ThreadPoolExecutor(count) as pool:
        for task in tasks:
            ends[task.id] = pool.submit(after_needs, task)
    for end in ends.values():
        end.result()
    return tasks, spans(run.task_records)


def do(wanted: Config, task: Task) -> None:
    """Run a task in this process."""
    error = local.run_task(wanted, task)
    if error:
        sys.exit(error)


# What runs cost.


def measure_machine() -> Machine:
    """What this machine can do at present, by the clock."""
    say("rates of this machine")
    n, N, columns = 1000, 10**6, 16
    A = torch.randn(n, n, dtype=torch.float64)
    written = Path("rates")
    write, read = write_rate(written), read_rate([written])
    written.unlink()
    wanted = load(f"sketch.block_size={columns}")
    manifest = array_manifest(wanted, wanted.sketch.each_round()[0], N)
    block, identity = manifest.blocks()[0], aslinearoperator(lambda X: X, shape=(N, N))
    begin = time.perf_counter()
    measurer = Measurer(manifest)
    measurer.measure(identity, block)
    first = time.perf_counter() - begin
    rest = least_seconds(lambda: measurer.measure(identity, block), 3)
    return Machine(
        gemm_rate(torch.float64),
        write,
        read,
        eigh=least_seconds(lambda: torch.linalg.eigh(A + A.T), 3) / n**3,
        draw=max(0.0, first - rest) / N,
        sketch=rest / columns / N,
        start=0.0,
    )


def at_points() -> tuple[Figure, Machine]:
    """Some runs of one worker in this process, from a cold file cache, beside their costs.

    Also what the machine can do, as last measured, which is before each run.
    """
    rows, worst = [], 0.0
    for N, inner in POINTS:
        here = measure_machine()
        say(f"N = {N:,}, inner {inner}")
        wanted = of_size(N, inner, 1, f"run_dir=run-{N}-{inner}", "launcher.threads=null")
        matvec = matvec_seconds(wanted, N)
        run, tasks = RunDir(wanted.run_dir), pipeline.tasks(wanted)
        bind(run, wanted)
        least, measured = Counter[str](), Counter[str]()
        for task in tasks:
            for path in run.path.rglob("*.h5"):
                drop_cache(path)
            begin = time.perf_counter()
            do(wanted, task)
            measured[task.stage] += time.perf_counter() - begin
            least[task.stage] += work(task, costs(task, wanted, N, matvec, here), 0.0).rest
        shutil.rmtree(run.path)
        stages = ("measure", "range_finder", "merge", "decompose")
        cells = [f"{measured[s]:.2f} s ({measured[s] / least[s]:.1f})" for s in stages]
        ratio = sum(measured[s] for s in stages) / sum(least[s] for s in stages)
        rows.append((f"{N:,}", inner, f"{1e3 * matvec:.2f} ms", *cells, f"{ratio:.2f}"))
        if max(SIZES[:-1]) == N:
            worst = max(worst, ratio, 1 / ratio)
    print(
        "**What stages cost**, by their operations and bytes (jobs/costs.py), and what runs "
        "of one process took on a Hessian of little cost, from a cold file cache. In brackets: "
        "measured over forecast.\n"
    )
    print(table(("N", "inner", "a matvec", *stages, "the whole"), rows) + "\n", flush=True)
    name = "forecast for N = 1e6 from operations and bytes: off by a factor of"
    return Figure(name, worst, "≤", 1.5), here


def matvec_seconds(wanted: Config, N: int) -> float:
    """Of one in a full block."""
    op = operators.hessian_operator(wanted, check.sample_inputs(wanted))
    X = torch.randn(N, wanted.sketch.block_size)
    return least_seconds(lambda: op @ X, 3) / X.shape[1]


def of_size(N: int, inner: int, workers: int, *overrides: str) -> Config:
    """A config of `inner` matvecs in two rounds, of which each worker has an equal share."""
    columns, probes = -(-inner // 2), 30
    per_task, block = next(
        (p, size)
        for p in itertools.count(1)
        for size in range(1, 65)
        if -(-columns // size) - (-probes // size) <= p * workers
    )
    return load(
        f"problem.n={N}",
        f"sketch.outer={columns}",
        f"sketch.inner={inner}",
        f"sketch.probes={probes}",
        f"sketch.block_size={block}",
        f"launcher.blocks_per_task={per_task}",
        *overrides,
    )


@dataclass(frozen=True)
class Point:
    """A run that is foreseen."""

    seconds: float
    parts: dict[str, float]  # by how much it would be shorter if a part cost nothing

    @property
    def bound(self) -> str:
        """The part without which it would be shortest."""
        return max(PARTS, key=self.parts.__getitem__)


def foresee(here: Machine, recorded: Recording, drawing: Path) -> None:
    """Print and draw how long runs would take, for a grid of sizes and numbers of workers."""
    speed = gemm_rate(torch.float32)

    @cache
    def point(network: str, N: int, inner: int, workers: int) -> Point:
        wanted = of_size(N, inner, workers)
        tasks = [task for task in pipeline.tasks(wanted) if task.stage != "train"]
        writers = min(workers, sum(task.stage == "measure" for task in tasks) // 2)
        matvec = FORWARDS * NETWORKS[network] * N * DATAPOINTS / speed
        parts = {task.id: costs(task, wanted, N, matvec, here, writers) for task in tasks}

        def seconds(free: str) -> float:
            start = 0.0 if free == "start-up" else here.start
            works = {task.id: work(task, {**parts[task.id], free: 0.0}, start) for task in tasks}
            slurm = Workers(workers) if free == "Slurm" else recorded.workers(workers)
            return makespan(replay(tasks, works, slurm))

        whole = seconds("")
        return Point(whole, {part: whole - seconds(part) for part in PARTS})

    print(
        f"**What runs would take**, from layout to overlap, on workers of which each is a machine "
        f"like this one and all share a disk as fast as its own (written at {here.write / 1e6:.0f} "
        f"MB/s, read at {here.read / 1e6:.0f}), and what bounds them: the part without which they "
        f"would be shortest. A matvec is of {DATAPOINTS} datapoints and costs {FORWARDS} forward "
        f"passes at {speed / 1e9:.0f} GFLOP/s.\n"
    )
    heads = ("N", "inner", *(f"{count} worker{'s' * (count > 1)}" for count in COUNTS))
    for network, operations in NETWORKS.items():
        rows = []
        for N, inner in product(SIZES, INNERS):
            points = [point(network, N, inner, workers) for workers in COUNTS]
            cells = (f"{duration(p.seconds)}, {p.bound}" for p in points)
            rows.append((f"{N:,}", inner, *cells))
        print(f"A {network} network, {operations} operations a parameter and datapoint:\n")
        print(table(heads, rows) + "\n", flush=True)
    draw(point, drawing)


def draw(point: Callable[[str, int, int, int], Point], path: Path) -> None:
    """Time by size and workers, and by how much the largest run would gain from each part."""
    figure = matplotlib.figure.Figure(figsize=(12.6, 3.8), layout="constrained")
    figure.suptitle("What runs would take", fontsize=13, fontweight="bold")
    *by_size, bounds = figure.subplots(1, 3)
    looks = [(BLUE, "-"), (VERMILLION, "--"), (BLACK, ":"), (GREY, "-."), (BLUE, ":")]
    inner, N, most = 1000, max(SIZES), max(INNERS)
    for axes, network in zip(by_size, NETWORKS, strict=True):
        for count, (colour, line) in zip(COUNTS, looks, strict=True):
            hours = [point(network, size, inner, count).seconds / 3600 for size in SIZES]
            label = f"{count} worker{'s' * (count > 1)}"
            axes.plot(SIZES, hours, line, color=colour, marker="o", label=label)
        axes.set(title=f"{network}, {inner} matvecs", xlabel="N", ylabel="hours")
        axes.set(xscale="log", yscale="log", ylim=(3e-3, 1e2))
    largest = [point("convolutional", N, most, count) for count in COUNTS]
    shares = {part: [100 * p.parts[part] / p.seconds for p in largest] for part in PARTS}
    shown = sorted(PARTS, key=lambda part: -max(shares[part]))[: len(looks)]
    for part, (colour, line) in zip(shown, looks, strict=True):
        bounds.plot(COUNTS, shares[part], line, color=colour, marker="o", label=part)
    bounds.set(
        title=f"convolutional, N = 1e{len(str(N)) - 1}, {most} matvecs",
        xlabel="workers",
        ylabel="% shorter if it cost nothing",
    )
    bounds.set_xscale("log", base=2)
    bounds.set_xticks(COUNTS, [str(count) for count in COUNTS])
    for axes in (*by_size, bounds):
        axes.grid(True, which="major", color="0.9", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(**LEGEND)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)


if __name__ == "__main__":
    main()
