"""What rounds bring and what they cost: residuals at equal products, and behind barriers.

A barrier is what each job of a chain waits for before it begins.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import product
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from benchmarks.devcluster import CORES, cluster
from benchmarks.exact import TOP, load_exact
from benchmarks.harness import Benchmark, Figure, Options, say, table
from benchmarks.runs import quadratic
from benchmarks.scheduler import Work, Workers, makespan, recording, replay
from benchmarks.tables.scale import ASLEEP, Run, measure_machine, submitted
from skerch import seigh, synthmat
from skerch.jobs import pipeline
from skerch.jobs.commands.plan import duration
from skerch.jobs.commands.seigh.costs import costs, seconds, workload
from skerch.jobs.config import Config
from skerch.jobs.pipeline import Task

BENCHMARK = Benchmark("docs/accuracy.md", make="bench")
STEP, SEEDS, N, K = 1000, 3, 2000, 100
ROUNDS, PRODUCTS = (1, 2, 3, 5, 10, 20), (1.25, 1.5, 2.0)  # products of each eigenpair
LIMIT = {2: 1.115, 3: 1.050, 5: 1.015, 10: 1.002}  # block Krylov with the best filter there is
SIZE, MATVEC = 10**6, 30.0  # of the runs that are foreseen: N, and seconds of a product
WORKERS, BARRIERS, BOUNDS = (1, 4, 32), (0, 60, 1800), (1.12, 1.05, 1.015)
NODES, SEEN = 2, (2, 3, 6)
Residuals = dict[tuple[float, int], float]  # by products of each eigenpair, and rounds


def measure(options: Options) -> Iterator[str | Figure]:
    """Residuals, hours until they are reached, and the model of that on a cluster."""
    found: dict[str, Residuals] = {}
    for name, (H, values, k) in spectra(options).items():
        say(name)
        found[name] = residuals(H, values, k)
    rows: list[list[Any]] = [
        [name, f"{each:g} k", *(f"{of[each, r]:.3f}" for r in ROUNDS)]
        for name, of in found.items()
        for each in PRODUCTS
    ]
    limits = [f"{LIMIT[r]:.3f}" if r in LIMIT else "" for r in ROUNDS]
    rows.append(["mnist_mini, block Krylov at best", "2 k", *limits])
    yield table(("residual / best", "products", *(f"{r} rounds" for r in ROUNDS)), rows)
    worst = max(found["mnist_mini"][2.0, r] / limit for r, limit in LIMIT.items())
    yield Figure("mnist_mini: residual over block Krylov's with the best filter", worst, "≤", 1.01)
    with tempfile.TemporaryDirectory(prefix="skerch-barriers-") as folder:
        yield from foresee(folder, found["mnist_mini"])
        yield from check(folder)


def spectra(options: Options) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Symmetric matrices in float32, their eigenvalues, and k, by name."""
    exact = load_exact(options.root, STEP)
    found = {"mnist_mini": (exact.H.float(), exact.eigenvalues, TOP)}
    for name, decay in {
        "10^(-0.01 i)": synthmat.exponential_decay(N, 1, 0.01),
        "1 / i": synthmat.polynomial_decay(N, 1, 1),
    }.items():
        H = synthmat.symmetric(decay, seed=0, signs="alternate")[0]
        found[name] = H.float(), torch.sort(decay.double().abs(), descending=True)[0], K
    return found


def residuals(H: Tensor, values: Tensor, k: int) -> Residuals:
    """‖H - H_k‖ over the best, the median of some seeds."""
    norm, best = float(values.square().sum()), float(torch.linalg.norm(values[k:]))

    def one(inner: int, rounds: int, seed: int) -> float:
        pairs = seigh(H, outer=k, inner=inner, rounds=rounds, seed=seed)
        W, of = pairs.eigenvectors, pairs.eigenvalues.double()
        quotients = (W.double() * (H @ W).double()).sum(0)
        return max(0.0, norm - float((2 * of * quotients - of.square()).sum())) ** 0.5 / best

    return {
        (each, rounds): median(one(round(each * k), rounds, seed) for seed in range(SEEDS))
        for each, rounds in product(PRODUCTS, ROUNDS)
    }


def foresee(folder: str, found: Residuals) -> Iterator[str]:
    """Hours until a residual is reached, by workers and barrier, in the rounds that are fastest."""
    here = measure_machine(folder)

    def hours(each: float, rounds: int, workers: int, barrier: float) -> float:
        wanted = of_rounds(round(each * TOP), rounds, workers)
        tasks = [task for task in pipeline.tasks(wanted) if task.stage != "train"]
        works = {
            t.id: Work(0.0, seconds(t, costs(workload(t, wanted, SIZE), MATVEC, here)))
            for t in tasks
        }
        return makespan(replay(tasks, works, Workers(workers, chain=barrier))) / 3600

    def fastest(bound: float, workers: int, barrier: float) -> str:
        least = min(
            (hours(*plan, workers, barrier), plan) for plan, r in found.items() if r <= bound
        )
        return f"{least[0]:.1f} h, {least[1][1]} rounds of {least[1][0]:g} k"

    yield (
        f"**Behind barriers**: N = {SIZE:,}, k = {TOP}, {MATVEC:g} s a product and mnist_mini's "
        "residuals above, from layout to overlap, in the plan of the table above that is fastest "
        "(`benchmarks/scheduler.py`, and `jobs/commands/costs.py` for what stages take here)."
    )
    rows = [
        (
            workers,
            duration(barrier) if barrier else "none",
            *(fastest(bound, workers, barrier) for bound in BOUNDS),
        )
        for workers, barrier in product(WORKERS, BARRIERS)
    ]
    yield table(("workers", "barrier", *(f"residual ≤ {bound}" for bound in BOUNDS)), rows)


def of_rounds(inner: int, rounds: int, workers: int) -> Config:
    """A run whose rounds are shared equally by the workers."""
    columns = -(-inner // rounds)
    block = min(64, -(-columns // workers))
    sizes = {"outer": TOP, "inner": inner, "rounds": rounds, "probes": 30, "block_size": block}
    per_task = f"launcher.blocks_per_task={1 if workers > 1 else 1000}"
    return quadratic(f"problem.n={SIZE}", per_task, **sizes)


def check(folder: str) -> Iterator[str | Figure]:
    """What runs of several rounds take on slurm/devcluster, and what the model says of them."""

    def run(name: str, nodes: int, rounds: int) -> Run:
        sizes = ("sketch.outer=20", "sketch.inner=40", f"sketch.rounds={rounds}")
        return submitted(f"{folder}/{name}", nodes, *sizes, nodes_in_all=NODES)

    with cluster(folder, NODES):
        tasks, seen = run("one", 1, SEEN[0])
        one = recording(tasks, seen, ASLEEP)
        runs = {rounds: run(f"run-{rounds}", NODES, rounds) for rounds in SEEN}
    blocks = {task.id: len(task.outputs) for task in tasks}
    stages = {task.id: task.stage for task in tasks}
    others: dict[str, list[float]] = {}
    for task_id, work in one.work.items():
        each = blocks[task_id] if stages[task_id] == "measure" else 1
        others.setdefault(stages[task_id], []).append(work.rest / each)
    rest = {stage: fmean(found) for stage, found in others.items()}

    def work_of(task: Task) -> Work:
        if task.stage == "measure":
            return Work(one.start, rest["measure"] * len(task.outputs))
        return Work(0.0, rest[task.stage])

    rows, worst = [], 0.0
    for rounds, (tasks, seen) in runs.items():
        foreseen = makespan(
            replay(tasks, {t.id: work_of(t) for t in tasks}, one.workers(NODES, CORES))
        )
        took = makespan(seen)
        error = 100 * (foreseen / took - 1)
        worst = max(worst, abs(error))
        rows.append((rounds, f"{took:.1f} s", f"{foreseen:.1f} s", f"{error:+.1f} %"))
    yield (
        f"The model, from a run of one node in {SEEN[0]} rounds, against runs of {NODES} nodes of "
        f"slurm/devcluster, where a product sleeps {ASLEEP:g} s:"
    )
    yield table(("rounds", "first task to last", "forecast", "error"), rows)
    yield Figure("forecast of rounds on a cluster: worst error", worst, "≤", 15, " %")
