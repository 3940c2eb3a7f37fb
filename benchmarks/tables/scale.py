"""How long runs take on any number of workers: a scheduler's model, checked, and what it foresees.

The model (benchmarks/scheduler.py) replays the task times of one worker. Here it is checked on
slurm/devcluster with 1 to 6 nodes, and told what runs of other sizes cost (jobs/commands/costs.py),
which some runs check. --quick checks it on threads. Takes half an hour.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import count, product
from pathlib import Path
from typing import Any

import torch

from benchmarks.devcluster import CORES, cluster, skerch, wait_for_all
from benchmarks.harness import QUADRATIC, Benchmark, Figure, Options, clock, say, table
from benchmarks.pictures import Curves, draw
from benchmarks.rates import drop_cache, gemm_rate, least_seconds, machine, read_rate, write_rate
from benchmarks.runs import begin, do, quadratic
from benchmarks.scheduler import Recording, Spans, Work, Workers, makespan, recording, replay, spans
from skerch import aslinearoperator
from skerch.analysis.figures import BLACK, BLUE, GREY, VERMILLION
from skerch.jobs import pipeline
from skerch.jobs.commands.check import sample_inputs
from skerch.jobs.commands.plan import duration
from skerch.jobs.commands.seigh.costs import Machine, costs, seconds, workload
from skerch.jobs.config import Config
from skerch.jobs.pipeline import Task
from skerch.jobs.run_dir import RunDir
from skerch.jobs.stages.layout import array_manifest
from skerch.jobs.stages.operator import curvature_operator
from skerch.measurements.measure import Measurer

BENCHMARK = Benchmark("docs/performance.md", make="bench", quick=True)
NODES, ASLEEP = 6, 2.0  # seconds of a product on the devcluster
POINTS = [(N, inner) for N in (10**4, 10**5, 10**6) for inner in (100, 400)]
SIZES = (10**4, 10**5, 10**6, 10**7)
INNERS = (100, 400, 1000, 4000)
COUNTS = {n: f"{n} worker{'s' * (n > 1)}" for n in (1, 4, 16, 64, 256)}
DATAPOINTS, FORWARDS = 500, 9  # of a matvec in the grid: 9 forward passes of each datapoint, of
NETWORKS = {"dense": 2, "convolutional": 300}  # operations a parameter (ResNet-18 has 310)
PARTS = ("HVPs", "sketch", "disk", "Gram", "eigh", "start-up", "Slurm")
LOOKS = ((BLUE, "-"), (VERMILLION, "--"), (BLACK, ":"), (GREY, "-."), (BLUE, ":"))
STAGES = ("measure", "range_finder", "merge", "decompose")
Run = tuple[list[Task], Spans]


def measure(options: Options) -> Iterator[str | Figure]:
    """The model's forecasts, what stages cost, and what runs would take."""
    with tempfile.TemporaryDirectory(prefix="skerch-scale-") as folder:
        if options.quick:
            by_threads(f"{folder}/imports", 1, 0.0)
            runs = {n: by_threads(f"{folder}/run-{n}", n, 0.12) for n in (1, 2, 3)}
            yield from forecasts(runs, "threads", asleep=0.12, cores=1)
            return
        yield machine()
        with cluster(folder, NODES):
            runs = {n: submitted(f"{folder}/run-{n}", n) for n in range(1, NODES + 1)}
        one = yield from forecasts(runs, "nodes", ASLEEP, CORES)
        here = yield from at_points(folder)
    yield from foresee(replace(here, start=one.start), one)


# The model of the scheduler.


def forecasts(
    runs: Mapping[int, Run], workers: str, asleep: float, cores: int
) -> Generator[str | Figure, None, Recording]:
    """Seconds that runs by number of workers took and should have taken, from the first one's.

    Returns what the first one tells.
    """
    one, rows, worst = recording(*runs[1], asleep), [], 0.0  # a product checks the loss
    for number, (tasks, seen) in runs.items():
        took = makespan(seen)
        foreseen = makespan(replay(tasks, one.work, one.workers(number, cores)))
        error = 100 * (foreseen / took - 1)
        worst = max(worst, abs(error))
        rows.append((number, f"{took:.1f} s", f"{foreseen:.1f} s", f"{error:+.1f} %"))
    if workers == "nodes":
        yield (
            "**The scheduler's model** on slurm/devcluster, of whose nodes each takes one task at "
            f"a time: 22 measurement tasks of 4 products, which sleep {asleep:g} s each, in two "
            f"rounds. From the run of one node: {one.start:.1f} s for the start of a task, for "
            f"which the nodes compete with {cores} cores, {one.refill:.1f} s from a task to the "
            f"next on a node, and {one.chain:.1f} s from a stage to the next."
        )
    yield table(("workers", "first task to last", "forecast", "error"), rows)
    name = f"forecast for 1 to {len(runs)} {workers}: worst error"
    yield Figure(name, worst, "≤", 15, " %")
    return one


def submitted(path: str, nodes: int, *overrides: str, nodes_in_all: int = NODES) -> Run:
    """A run on the first nodes of the devcluster, a job a task, and when each task ran."""
    exclude = f"resources.all.exclude=n[{nodes + 1}-{nodes_in_all}]"
    others = (*overrides, *[exclude] * (nodes < nodes_in_all), "launcher.fuse=false")
    skerch("submit", str(QUADRATIC), f"run_dir={path}", f"problem.seconds={ASLEEP}", *others)
    wait_for_all()
    run = RunDir(Path(path))
    tasks = pipeline.tasks(run.load())
    if pipeline.missing(tasks):
        raise RuntimeError(skerch("status", path)[0])
    return tasks, spans(run.task_records)


def by_threads(path: str, threads: int, asleep: float) -> Run:
    """A run by some threads of this process, and when each task ran.

    The figures at the end are left out, as they do not know threads.
    """
    fixed = (f"run_dir={path}", f"problem.seconds={asleep}", "launcher.blocks_per_task=2")
    wanted = quadratic(*fixed, outer=11, inner=22)
    run, tasks = begin(wanted)
    ends: dict[str, Future[None]] = {}

    def after_needs(task: Task) -> None:
        for need in task.needs:
            ends[need].result()
        do(wanted, task)

    with ThreadPoolExecutor(threads) as pool:
        for task in tasks[:-1]:
            ends[task.id] = pool.submit(after_needs, task)
    for end in ends.values():
        end.result()
    return tasks[:-1], spans(run.task_records)


# What runs cost.


def measure_machine(folder: str) -> Machine:
    """What this machine can do at present, by the clock."""
    say("rates of this machine")
    n, N, columns = 1000, 10**6, 16
    A = torch.randn(n, n, dtype=torch.float64)
    written = Path(folder, "rates")
    write, read = write_rate(written), read_rate([written])
    written.unlink()
    wanted = quadratic(block_size=columns)
    manifest = array_manifest(wanted, wanted.sketch.each_round()[0], N)
    block, identity = manifest.blocks()[0], aslinearoperator(lambda X: X, shape=(N, N))
    start = time.perf_counter()
    measurer = Measurer(manifest)
    measurer.measure(identity, block)
    first = time.perf_counter() - start
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


def at_points(folder: str) -> Generator[str | Figure, None, Machine]:
    """Some runs of one worker in this process, from a cold file cache, beside their costs.

    Returns what the machine can do, as last measured, which is before each run.
    """
    rows, worst = [], 0.0
    for N, inner in POINTS:
        here = measure_machine(folder)
        say(f"N = {N:,}, inner {inner}")
        wanted = of_size(N, inner, 1, f"run_dir={folder}/run", "launcher.threads=null")
        op = curvature_operator(wanted, sample_inputs(wanted))
        X = torch.randn(N, wanted.sketch.block_size)
        matvec = least_seconds(lambda op=op, X=X: op @ X, 3) / X.shape[1]
        run, tasks = begin(wanted)
        least, measured = Counter[str](), Counter[str]()
        for task in tasks:
            for path in run.path.rglob("*.h5"):
                drop_cache(path)
            measured[task.stage] += clock(lambda wanted=wanted, task=task: do(wanted, task))
            least[task.stage] += seconds(task, costs(workload(task, wanted, N), matvec, here))
        shutil.rmtree(run.path)
        cells = [f"{measured[s]:.2f} s ({measured[s] / least[s]:.1f})" for s in STAGES]
        ratio = sum(measured[s] for s in STAGES) / sum(least[s] for s in STAGES)
        rows.append((f"{N:,}", inner, f"{1e3 * matvec:.2f} ms", *cells, f"{ratio:.2f}"))
        if POINTS[-1][0] == N:
            worst = max(worst, ratio, 1 / ratio)
    yield (
        "**What stages cost**, by their operations and bytes (jobs/commands/costs.py), and what "
        "runs of one process took on a Hessian of little cost, from a cold file cache. In "
        "brackets: measured over forecast."
    )
    yield table(("N", "inner", "a matvec", *STAGES, "the whole"), rows)
    name = "forecast for N = 1e6 from operations and bytes: off by a factor of"
    yield Figure(name, worst, "≤", 1.5)
    return here


def of_size(N: int, inner: int, workers: int, *overrides: str) -> Config:
    """A config of `inner` matvecs in two rounds, of which each worker has an equal share."""
    columns, probes = -(-inner // 2), 30
    per_task, block = next(
        (p, size)
        for p in count(1)
        for size in range(1, 65)
        if -(-columns // size) - (-probes // size) <= p * workers
    )
    sizes = {"outer": columns, "inner": inner, "probes": probes, "block_size": block}
    fixed = f"problem.n={N}", f"launcher.blocks_per_task={per_task}"
    return quadratic(*fixed, *overrides, **sizes)


@dataclass(frozen=True)
class Point:
    """A run that is foreseen."""

    seconds: float
    parts: dict[str, float]  # by how much it would be shorter if a part cost nothing

    def __str__(self) -> str:
        """Its time, and the part without which it would be shortest."""
        return f"{duration(self.seconds)}, {max(PARTS, key=self.parts.__getitem__)}"


def foresee(here: Machine, recorded: Recording) -> Iterator[str]:
    """How long runs would take, for a grid of sizes and numbers of workers; draws it, too."""
    speed = gemm_rate(torch.float32)

    @cache
    def point(network: str, N: int, inner: int, workers: int) -> Point:
        wanted = of_size(N, inner, workers)
        tasks = [task for task in pipeline.tasks(wanted) if task.stage != "train"]
        writers = min(workers, sum(task.stage == "measure" for task in tasks) // 2)
        matvec = FORWARDS * NETWORKS[network] * N * DATAPOINTS / speed
        parts = {
            t.id: costs(workload(t, wanted, N), matvec, here, writers if t.array else 1)
            for t in tasks
        }

        def without(free: str) -> float:
            start = 0.0 if free == "start-up" else here.start
            works = {t.id: Work(start, seconds(t, {**parts[t.id], free: 0.0})) for t in tasks}
            slurm = Workers(workers) if free == "Slurm" else recorded.workers(workers)
            return makespan(replay(tasks, works, slurm))

        whole = without("")
        return Point(whole, {part: whole - without(part) for part in PARTS})

    yield (
        f"**What runs would take**, from layout to overlap, on workers of which each is a machine "
        f"like this one and all share a disk as fast as its own (written at {here.write / 1e6:.0f} "
        f"MB/s, read at {here.read / 1e6:.0f}), and what bounds them: the part without which they "
        f"would be shortest. A matvec is of {DATAPOINTS} datapoints and costs {FORWARDS} forward "
        f"passes at {speed / 1e9:.0f} GFLOP/s."
    )
    for network, operations in NETWORKS.items():
        rows = (
            (f"{N:,}", inner, *(point(network, N, inner, workers) for workers in COUNTS))
            for N, inner in product(SIZES, INNERS)
        )
        yield f"A {network} network, {operations} operations a parameter and datapoint:"
        yield table(("N", "inner", *COUNTS.values()), rows)
    draw("scale", *panels(point))


def panels(
    point: Callable[[str, int, int, int], Point],
) -> Iterator[tuple[Curves, dict[str, Any]]]:
    """Time by size and workers, and by how much the largest run would gain from each part."""
    inner, N, most = 1000, max(SIZES), max(INNERS)
    for network in NETWORKS:
        curves = {
            label: (look, SIZES, [point(network, n, inner, workers).seconds / 3600 for n in SIZES])
            for (workers, label), look in zip(COUNTS.items(), LOOKS, strict=True)
        }
        axes = {"xlabel": "N", "ylabel": "hours", "xscale": "log", "yscale": "log"}
        yield curves, axes | {"title": f"{network}, {inner} matvecs", "ylim": (3e-3, 1e2)}
    largest = [point("convolutional", N, most, workers) for workers in COUNTS]
    shares = {part: [100 * p.parts[part] / p.seconds for p in largest] for part in PARTS}
    shown = sorted(PARTS, key=lambda part: -max(shares[part]))[: len(LOOKS)]
    curves = {
        part: (look, [*COUNTS], shares[part]) for part, look in zip(shown, LOOKS, strict=True)
    }
    title = f"convolutional, N = 1e{len(str(N)) - 1}, {most} matvecs"
    axes = {"xlabel": "workers", "ylabel": "% shorter if it cost nothing", "xscale": "log"}
    ticks = {"xticks": [*COUNTS], "xticklabels": [*COUNTS]}
    yield curves, axes | ticks | {"title": title}
