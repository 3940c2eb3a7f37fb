"""Merging and solving arrays that are larger than memory: time over its floor, memory, accuracy.

The Hessian is diag(1, 1/2 …), sketched by the default recipe in float32. That needs 36 GB (0.7 with
--quick) in TMPDIR, which should be on the disk that is meant. Each stage is a process of its own,
whose peak memory is read from outside, and begins with its files dropped from the page cache.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Benchmark, Figure, Options, apart, clock, in_turns, over, say, table
from benchmarks.peers.products import seconds, timer
from benchmarks.rates import drop_cache, gemm_operation, machine, peak_bytes, read_rate, write_rate
from benchmarks.runs import begin, do, quadratic
from skerch import load, synthmat
from skerch.decompositions.solve import solve
from skerch.jobs.commands.seigh.costs import workload
from skerch.jobs.commands.seigh.disk import hessian_disk
from skerch.jobs.config import Config
from skerch.jobs.pipeline import Task
from skerch.jobs.stages.sketch import SketchFiles
from skerch.measurements.array import MeasurementArray, StoredColumns
from skerch.measurements.gram import gram
from skerch.measurements.summary import Summary
from skerch.measurements.team import ALONE, Team

BENCHMARK = Benchmark("docs/performance.md", make="bench", quick=True)
PROBES = 30
GIB = 2**30
FULL = [  # N, outer and rounds; inner is twice outer
    (895_210, 1000, 2),
    (895_210, 1000, 8),
    (11_689_512, 100, 2),
    (11_689_512, 100, 8),
]
QUICK = [(49_152, 400, 2)]  # slabs of even number, as there are few for two ranks
FOR_RANKS = (100_000, 800)  # of which the first round
STAGES = ("range_finder", "merge", "decompose")
FLOOR = (
    "The floor is operations, bytes written and bytes read, one after another, at the rates of "
    "float64 products, a new file and the first round's blocks just before."
)
DECAYS = {  # exponents of exponential decays, in float32 and float64; None: of rank 40
    "κ(Y) = 1e3": {"float32": 0.013, "float64": 0.013},
    "κ(Y) = 1e6": {"float32": 0.027, "float64": 0.027},
    "beyond the precision": {"float32": 0.05, "float64": 0.1},
    "rank 40": None,
}
RANK_40 = torch.cat([torch.linspace(2, 1, 40), torch.zeros(1460)]).double()


def measure(options: Options) -> Iterator[str | Figure]:
    """Stages, passes for the Gram matrix, and residuals beside those of a QR."""
    quick = options.quick
    yield f"`python -m benchmarks out_of_core`, {machine()}"
    yield FLOOR
    with tempfile.TemporaryDirectory(prefix="skerch-out-of-core-") as folder:
        rows: list[list[object]] = []
        for N, outer, rounds in QUICK if quick else FULL:
            # more than one measurement task a round, or one task does all rounds
            more = (f"sketch.rounds={rounds}", "launcher.blocks_per_task=1") if rounds > 2 else ()
            wanted = of_size(folder, N, outer, *more)
            yield from stages(wanted, N, quick, rows)
            if not quick:
                shutil.rmtree(wanted.run_dir)
        heads = ("stage", "Tflop", "GB read", "GB written", "floor, s", "measured, s", "over floor")
        yield table((*heads, "peak, GiB"), rows)
        if not quick:
            N, outer = FOR_RANKS
            wanted = of_size(folder, N, outer)
            begin(wanted, first=3)
        yield from passes(wanted, N, 2 if quick else 1, 3 if quick else 5)
        dtypes = ("float32",) if quick else ("float32", "float64")
        yield from accuracy(folder, dtypes)


def of_size(folder: str, N: int, outer: int, *overrides: str) -> Config:
    """A run in two rounds, each of one measurement task."""
    fixed = ("launcher.blocks_per_task=1000", "launcher.threads=null", f"run_dir={folder}/{N}")
    sizes = {"outer": outer, "inner": 2 * outer, "probes": PROBES, "block_size": 64}
    return quadratic(f"problem.n={N}", *fixed, *overrides, **sizes)


def stages(wanted: Config, N: int, quick: bool, rows: list[list[object]]) -> Iterator[Figure]:
    """A row a stage, its time over the floor, and its peak memory."""
    _, tasks = begin(wanted)
    summary = replace(wanted, consolidate=False)
    small = hessian_disk(summary, N).merged / GIB
    rounds = len(wanted.sketch.each_round())
    if rounds > 2:
        yield from all_rounds(wanted, N, tasks[:-1], rows, small)
        return
    for task in tasks[:-1]:
        ways = {task.stage: wanted}
        if task.stage == "merge" and not quick:  # so small, reading alone is shorter than its start
            ways = {"merge_summary": summary} | ways
        for stage, config in ways.items():
            name = f"N = {N:,}, {config.sketch.outer} / {config.sketch.inner}: {stage}"
            say(name)
            if task.stage not in STAGES:
                do(config, task)
                continue
            floors, taken = [], []
            for _ in range(2 if quick else 1):  # short ones are noisy
                floor, work = least(config, task, N, quick)
                seconds, peak = child(config, task)
                floors.append(floor)
                taken.append(seconds)
            ratio = over(taken, floors)
            rows.append([name, *work, min(floors), min(taken), ratio, peak])
            # the processor's time has no share of the disk's, behind which conversions hide
            yield Figure(f"{name}, time over floor", ratio, "≤", 2 if quick else 1.5)
            yield Figure(f"{name}, peak memory less the summary", peak - small, "≤", 1.0, " GiB")


def all_rounds(
    wanted: Config, N: int, tasks: Sequence[Task], rows: list[list[object]], small: float
) -> Iterator[Figure]:
    """One row for the range finders, the merge and the decomposition of many rounds."""
    sizes = f"{wanted.sketch.outer} / {wanted.sketch.inner}"
    name = f"N = {N:,}, {sizes}: all of {len(wanted.sketch.each_round())} rounds"
    floors, taken, amounts, peaks = 0.0, 0.0, np.zeros(3), [0.0]
    for task in tasks:
        if task.stage not in STAGES:
            do(wanted, task)
            continue
        say(task.id)
        floor, work = least(wanted, task, N, quick=False)
        seconds, peak = child(wanted, task)
        floors, taken = floors + floor, taken + seconds
        amounts += [float(each) for each in work]
        peaks.append(peak)
    found = [f"{each:.1f}" for each in amounts]
    rows.append([name, *found, floors, taken, taken / floors, max(peaks)])
    yield Figure(f"{name}, time over floor", taken / floors, "≤", 1.5)
    yield Figure(f"{name}, peak memory less the summary", max(peaks) - small, "≤", 1.0, " GiB")


def least(config: Config, task: Task, N: int, quick: bool) -> tuple[float, list[str]]:
    """The floor of a task's seconds at present; operations in 10¹², gigabytes read and written."""
    must, path = workload(task, config, N), Path(config.run_dir, "rate")
    operations = must.gram + must.products + 4 * must.cubes
    write = write_rate(path, GIB // 8 if quick else GIB, timer())
    path.unlink()
    operation, read = gemm_operation(torch.float64), read_rate(blocks(config), timer())
    floor = operations * min(operation(), operation()) + must.read / read + must.written / write
    amounts = (f"{operations / 1e12:.2f}", f"{must.read / 1e9:.1f}", f"{must.written / 1e9:.1f}")
    return floor, list(amounts)


def blocks(config: Config) -> list[Path]:
    """The files of the first round."""
    return sorted(Path(config.run_dir).rglob("round-1/blocks/*.h5"))


def child(config: Config, task: Task) -> tuple[float, float]:
    """Seconds and peak GiB of a task in a process of its own.

    It is forked from one that has imported everything and done nothing.
    """
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        seconds = pool.apply(cold, (config, task))
        return seconds, peak_bytes(pool.apply(os.getpid)) / GIB


def cold(config: Config, task: Task) -> float:
    """The seconds of a task with nothing in the page cache."""
    import_module(f"skerch.jobs.stages.{task.stage}")
    for path in Path(config.run_dir).rglob("*.h5"):
        drop_cache(path)
    return clock(lambda: do(config, task), timer())


def passes(config: Config, N: int, rounds: int, turns: int) -> Iterator[str | Figure]:
    """The pass for a Gram matrix in memory, and that of one rank and of two, of a core each."""
    Y = torch.randn(7030, 740, generator=torch.Generator().manual_seed(0))
    works = {
        "gram": lambda: seconds(lambda: gram(lambda start, stop: Y[start:stop], len(Y))),
        "operation": gemm_operation(torch.float64),
    }
    alone, operation = in_turns(works, 9).values()
    floors = [len(Y) * Y.shape[1] ** 2 * each for each in operation]
    ratio = over(alone, floors)
    say("ranks")
    beside = Path(sys.executable).with_name("mpiexec")  # bound to cores, as srun binds its tasks
    mpiexec = [str(beside) if beside.exists() else "mpiexec", "-bind-to", "core", "-n", "2"]
    first = blocks(config)[0].parents[1]
    arrays = [str(first.with_name(f"round-{number + 1}")) for number in range(rounds)]
    one, two = zip(*apart(pass_of_ranks, arrays, turns, launcher=mpiexec), strict=True)
    width = rounds * config.sketch.outer + PROBES
    rows = [
        ("7,030 x 740 in memory", min(floors), min(alone), ratio),
        (f"{N:,} x {width} in files, one rank, on one core", "", min(one), ""),
        ("the same, two ranks, on a core each", "", min(two), f"{over(one, two):.2f} times faster"),
    ]
    yield table(("Gram matrix", "floor, s", "measured, s", ""), rows)
    yield Figure("Gram matrix in memory, time over floor", ratio, "≤", 1.5)
    yield Figure("Gram matrix, two ranks over one", over(one, two), "≥", 1.6, "x")


def pass_of_ranks(arrays: Sequence[str], turns: int) -> list[tuple[float, float]] | None:
    """On the first rank, by turns the seconds of all, each alone for itself, and together.

    They are of the Gram matrix of all columns, and of the rank that takes longest: what else the
    machine does slows both.
    """
    from mpi4py import MPI

    from skerch.jobs.launchers.mpi.ranks import Ranks

    comm = MPI.COMM_WORLD
    ranks = Ranks(comm)
    with StoredColumns([MeasurementArray(Path(path)) for path in arrays]) as columns:

        def longest(team: Team) -> float:
            comm.Barrier()
            taken = clock(lambda: gram(columns, columns.size, team=team))
            return comm.allreduce(taken, MPI.MAX)

        found = [(longest(ALONE), longest(ranks)) for _ in range(turns + 1)]
    return found[1:] if ranks.writes else None  # the first is for warmth


def accuracy(folder: str, dtypes: Sequence[str]) -> Iterator[str | Figure]:
    """The residual through files, that of a QR of the same columns, and how much it is over it."""
    rows, worst = [], -math.inf
    for (number, (name, decay)), dtype in product(enumerate(DECAYS.items()), dtypes):
        say(f"accuracy: {name}, {dtype}")
        spectrum = synthmat.exponential_decay(1500, 1, decay[dtype]) if decay else RANK_40
        H = synthmat.symmetric(spectrum, seed=number, signs="alternate")[0]
        matrix = f"{folder}/{number}-{dtype}"
        np.save(f"{matrix}.npy", H.numpy())
        given = f"problem.matrix={matrix}.npy", f"hessian.dtype={dtype}"
        config = of_size(matrix, len(H), 100, *given)
        begin(config, first=-1)
        pairs = load(config.run_dir)[0, "test"]
        found = residual(H, pairs.eigenvectors[:].double(), pairs.eigenvalues)
        with SketchFiles(pairs.context).merged() as merged:
            assert merged.rows is not None
            Y = merged.rows(0, len(H)).double()
            W, values = by_qr(Y, merged.summary, 100)
        expected = residual(H, W.to(getattr(torch, dtype)).double(), values)
        excess, norm = found / expected - 1, float(torch.linalg.norm(H))
        condition = float(torch.linalg.cond(Y))
        figures = (f"{found / norm:.4e}", f"{expected / norm:.4e}", f"{excess:+.0e}")
        rows.append((f"{name}, torch.{dtype}", f"{condition:.0e}", *figures))
        worst = max(worst, excess)
    yield table(("N = 1,500, 100 / 200", "κ(Y)", "files", "QR in core", "over it"), rows)
    yield Figure("residual over that of a QR, less 1", worst, "≤", 1e-3)


def residual(H: Tensor, W: Tensor, values: Tensor) -> float:
    """‖H - W diag(λ) Wᵀ‖."""
    return float(torch.linalg.norm(H - (W * values) @ W.T))


def by_qr(Y: Tensor, summary: Summary, outer: int) -> tuple[Tensor, Tensor]:
    """Eigenvectors and eigenvalues of the same measurements by a QR of Y, in core and float64.

    Y = Q R, R = U S Vᵀ, and the eigenvectors are taken from Q U instead of Y V / S.
    """
    Q, R = torch.linalg.qr(Y)
    U, S, Vh = torch.linalg.svd(R)
    kept = S / S[0] > 1e-14
    U, S, Vh = U[:, kept], S[kept], Vh[kept]
    whole = replace(summary, P=Vh.T / S, R=S[:, None] * Vh)
    solution = solve(whole, "nystrom", outer)
    return Q @ (U @ (whole.R @ solution.coefficients)), solution.eigenvalues
