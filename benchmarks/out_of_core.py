"""Merging and solving arrays that are larger than memory: time over its floor, memory, accuracy.

    python benchmarks/out_of_core.py [--quick] [--folder DIR]

Prints Markdown. The blocks are of H = R diag(λ) R in float32, with a reflection R = 1 - 2 u uᵀ and
|λ_i| = 1/i, measured by the default recipe and written by the library in DIR, which needs 36 GB
(0.7 with --quick) and should be on the disk that is meant. Each stage is a process of its own,
whose peak memory is read from outside, and begins with its files dropped from the page cache.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from figures import (
    Figure,
    drop_cache,
    finish,
    gemm_operation,
    in_turns,
    machine,
    over,
    read_rate,
    table,
    write_rate,
)
from peers.products import seconds, timer
from torch import Tensor

from skerch import synthmat
from skerch.decompositions.eigh_file import EighFile, write_eigh
from skerch.decompositions.recoveries import RECOVERIES
from skerch.decompositions.solve import solve
from skerch.linops import aslinearoperator
from skerch.linops.base import LinearOperator
from skerch.measurements.array import MeasurementArray, StoredColumns
from skerch.measurements.gram import gram
from skerch.measurements.manifest import Manifest
from skerch.measurements.measure import Measurer
from skerch.measurements.merge import MergedArray, merge
from skerch.measurements.range_finder import RangeFile, find_range
from skerch.measurements.summary import Summary
from skerch.measurements.team import ALONE, Team

PROBES = 30
GIB = 2**30
STAGES = ("range_finder", "merge", "merge_summary", "decompose")


@dataclass(frozen=True)
class Size:
    """The dimension, the eigenpairs asked for, and the matvecs spent on them in two rounds."""

    N: int
    outer: int
    inner: int

    def __str__(self) -> str:
        return f"N = {self.N:,}, {self.outer} / {self.inner}"

    def manifest(self, number: int, dtype: str = "float32", **changes: object) -> Manifest:
        """Of a round."""
        rounds = RECOVERIES["nystrom"].each_round(2, self.outer, self.inner, PROBES)
        fields = asdict(rounds[number - 1]) | changes
        return Manifest(self.N, dtype, block_size=64, sketch="sparse_sign", seed=0, **fields)

    @property
    def small(self) -> int:
        """Bytes of the summary: the Gram matrix, P, R, Ω [Y₁, HZ] and the range map."""
        m, half, w = self.inner, self.inner // 2, self.inner + PROBES
        return 8 * (w**2 + 2 * m**2 + half * (half + PROBES) + half**2)

    def work(self, stage: str) -> tuple[float, float, float]:
        """Floating-point operations, and bytes read and written, that a stage cannot do without.

        A Gram matrix is symmetric, and that of the first round is known when rounds are merged.
        """
        N, m, k, half = self.N, self.inner, self.outer, self.inner // 2
        w = m + PROBES
        if stage == "range_finder":  # a pass for the Gram matrix of Y, another for Q = Y P
            return N * half**2 + 2 * N * half**2, 2 * 4 * N * half, 4 * N * half
        if stage == "decompose":
            return 2 * N * m * k + 8 * m**3, 4 * N * m, 4 * N * k  # two eigh, 4 m³ each
        return N * (w**2 - half**2), 4 * N * w, 4 * N * w * (stage == "merge")


FULL = [Size(895_210, 1000, 2000), Size(11_689_512, 100, 200)]
QUICK = [Size(49_152, 400, 800)]  # slabs of even number, as there are few for two ranks
FOR_RANKS = Size(100_000, 800, 1600)  # of which the first round


class Reflected(LinearOperator):
    """R diag(λ) R for R = 1 - 2 u uᵀ: its eigenvectors are the columns of R."""

    self_adjoint = True

    def __init__(self, N: int):
        super().__init__((N, N))
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(N, 1, generator=generator)
        self._u = u / torch.linalg.norm(u)
        signs = torch.randint(2, (N, 1), generator=generator) * 2 - 1
        self._eigenvalues = signs / torch.arange(1, N + 1)[:, None]

    def _matmul(self, X: Tensor) -> Tensor:
        Y = torch.addmm(X, self._u, self._u.T @ X, alpha=-2).mul_(self._eigenvalues)
        return Y.addmm_(self._u, self._u.T @ Y, alpha=-2)


class Files:
    """The files of two rounds, as the pipeline names them."""

    def __init__(self, folder: Path):
        self.rounds = [folder / "round-1", folder / "round-2"]
        self.range = self.rounds[1] / "range.h5"
        self.merged = folder / "merged.h5"
        self.eigh = folder / "eigh.h5"

    def arrays(self, rounds: int = 2) -> list[MeasurementArray]:
        """The measurement arrays of the first rounds."""
        return [MeasurementArray(path) for path in self.rounds[:rounds]]

    def measure(self, op: LinearOperator, size: Size, number: int) -> None:
        """Write all blocks of a round."""
        dtype = str(op.dtype).removeprefix("torch.")
        with ExitStack() as stack:
            found = None
            if number > 1:
                found = stack.enter_context(RangeFile(self.range, self.arrays(1)))
            manifest = size.manifest(number, dtype, range_hash=found and found.hash)
            array = MeasurementArray.create(self.rounds[number - 1], manifest)
            measurer = Measurer(manifest, range_columns=found and found.columns)
            for block in manifest.blocks():
                array.write(block, measurer.measure(op, block))

    def run(self, stage: str, outer: int) -> None:
        """A stage, as the pipeline runs it."""
        if stage == "range_finder":
            columns = RECOVERIES["nystrom"].each_round(2, outer, 2 * outer, PROBES)[1].columns
            find_range(self.arrays(1), self.range, columns)
        elif stage == "decompose":
            with MergedArray(self.merged) as merged:
                solution = solve(merged.summary, "nystrom", outer)
                assert merged.rows is not None
                manifest = self.arrays(1)[0].manifest
                of = {"probes": PROBES, "manifests": " ".join(merged.manifests)}
                write_eigh(self.eigh, solution, merged.rows, manifest.size, manifest.dtype, of)
        else:
            whole = stage == "merge"
            path = self.merged if whole else self.merged.with_name("summary.h5")
            with RangeFile(self.range, self.arrays(1)) as found:
                merge(self.arrays(), path, range_file=found, consolidate=whole)


def say(words: str) -> None:
    """Tell how far it is."""
    print(words, file=sys.stderr, flush=True)


def child(name: str, folder: Path, outer: int) -> tuple[float, int]:
    """Seconds and peak bytes of a part of this program in a process of its own.

    It is forked from one that has imported everything and done nothing.
    """
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        found = pool.apply(part, (name, folder, outer))
        status = Path(f"/proc/{pool.apply(os.getpid)}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return found, peak * 1024


def part(name: str, folder: Path, outer: int) -> float:
    """The seconds of the blocks of a round, or of a stage with nothing in the page cache."""
    files = Files(folder)
    for path in folder.rglob("*.h5"):
        drop_cache(path)
    start = timer()()
    if name in STAGES:
        files.run(name, outer)
    else:
        size = Size(int(folder.name), outer, 2 * outer)
        files.measure(Reflected(size.N), size, int(name))
    return timer()() - start


def ranks(folder: Path, turns: int) -> tuple[list[float], list[float]]:
    """The seconds of one rank and of two, of a core each, for the same Gram matrix, by turn.

    They are bound to their cores, as srun binds its tasks.
    """
    say("ranks")
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    program = [sys.executable, __file__, "--folder", str(folder), "--ranks", str(turns)]
    done = subprocess.run(
        [mpiexec or "mpiexec", "-bind-to", "core", "-n", "2", *program],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        sys.exit(f"{' '.join(program)} failed")
    one, two = zip(*json.loads(done.stdout), strict=True)
    return one, two


def pass_of_ranks(files: Files, turns: int) -> None:
    """The first rank prints by turns the seconds of all, each alone for itself, and together.

    They are of the Gram matrix of all columns, and of the rank that takes longest: what else the
    machine does slows both.
    """
    from mpi4py import MPI

    from skerch.jobs.launchers.mpi.ranks import Ranks

    comm = MPI.COMM_WORLD
    ranks = Ranks(comm)
    with StoredColumns(files.arrays(2 if files.merged.exists() else 1)) as columns:

        def longest(team: Team) -> float:
            comm.Barrier()
            start = time.perf_counter()
            gram(columns, columns.size, team=team)
            return comm.allreduce(time.perf_counter() - start, MPI.MAX)

        found = [(longest(ALONE), longest(ranks)) for _ in range(turns + 1)]
    if ranks.writes:
        print(json.dumps(found[1:]))  # the first is for warmth


def stages(
    size: Size, folder: Path, names: Sequence[str], quick: bool
) -> Iterator[tuple[list[object], float, float]]:
    """Each stage's row of the table, its time over the floor, and its peak memory in GiB."""
    for name in ("1", "range_finder", "2", *names):
        say(f"{size}: {name if name in STAGES else f'the blocks of round {name}'}")
        if name not in STAGES:
            child(name, folder, size.outer)
            continue
        flops, least, written = size.work(name)
        floors, found = [], []
        for _ in range(2 if quick else 1):  # short ones are noisy
            gemm, read, write = rates(folder, quick)
            floors.append(flops / gemm + least / read + written / write)
            taken, peak = child(name, folder, size.outer)
            found.append(taken)
        work = (f"{flops / 1e12:.2f}", f"{least / 1e9:.1f}", f"{written / 1e9:.1f}")
        ratio, memory = over(found, floors), peak / GIB
        row = [f"{size}: {name}", *work, min(floors), min(found), ratio, memory]
        yield row, ratio, memory


def rates(folder: Path, quick: bool) -> tuple[float, float, float]:
    """Operations a second, and bytes read and written, at present; reads are of first blocks."""
    path = folder / "rate"
    write = write_rate(path, GIB // 8 if quick else GIB, timer())
    path.unlink()
    (array,) = Files(folder).arrays(1)
    paths = [array.path(block.index) for block in array.manifest.blocks()]
    operation = gemm_operation(torch.float64)
    return 1 / min(operation(), operation()), read_rate(paths, timer()), write


DECAYS: dict[str, Callable[[int, torch.dtype], Tensor]] = {
    "κ(Y) = 1e3": lambda N, _: synthmat.exponential_decay(N, 1, 0.013),
    "κ(Y) = 1e6": lambda N, _: synthmat.exponential_decay(N, 1, 0.027),
    "beyond the precision": lambda N, dtype: synthmat.exponential_decay(
        N, 1, 0.05 if dtype == torch.float32 else 0.1
    ),
    "rank 40": lambda N, _: torch.cat([torch.linspace(2, 1, 40), torch.zeros(N - 40)]).double(),
}


def accuracy(folder: Path, dtypes: Sequence[torch.dtype]) -> Iterator[tuple[list[object], float]]:
    """The residual through files, that of a QR of the same columns, and how much it is over it."""
    size = Size(1500, 100, 200)
    for number, (name, decay) in enumerate(DECAYS.items()):
        say(f"accuracy: {name}")
        for dtype in dtypes:
            H = synthmat.symmetric(decay(size.N, dtype), seed=number, signs="alternate")[0]
            norm = float(torch.linalg.norm(H))
            files = Files(folder / f"{number}-{dtype}")
            op = aslinearoperator(H.to(dtype), self_adjoint=True)
            for stage in ("1", "range_finder", "2", "merge", "decompose"):
                if stage in STAGES:
                    files.run(stage, size.outer)
                else:
                    files.measure(op, size, int(stage))
            with MergedArray(files.merged) as merged, EighFile(files.eigh) as eigh:
                assert merged.rows is not None
                Y = merged.rows(0, size.N).double()
                found = residual(H, eigh.eigenvectors[:].double(), eigh.eigenvalues)
                W, values = by_qr(Y, merged.summary, size.outer)
            expected = residual(H, W.to(dtype).double(), values)
            condition = float(torch.linalg.cond(Y))
            excess = found / expected - 1
            figures = (f"{found / norm:.4e}", f"{expected / norm:.4e}", f"{excess:+.0e}")
            yield [f"{name}, {dtype}", f"{condition:.0e}", *figures], excess


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


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small size, in half a minute")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: TMPDIR")
    parser.add_argument("--ranks", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ranks:
        pass_of_ranks(Files(options.folder), options.ranks)
        return
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        print(f"`python benchmarks/out_of_core.py`, {machine()}\n")
        print(
            "The floor is operations, bytes written and bytes read, one after another, at the "
            "rates of float64 products, a new file and the first round's blocks just before.\n"
        )
        rows = []
        # the processor's time has no share of the disk's, behind which conversions hide
        target = 2 if options.quick else 1.5
        # so small, a pass of reading alone is shorter than its start
        names = [name for name in STAGES[1:] if not (options.quick and name == "merge_summary")]
        for size in QUICK if options.quick else FULL:
            folder = Path(scratch) / str(size.N)
            for row, ratio, memory in stages(size, folder, names, options.quick):
                rows.append(row)
                figures.append(Figure(f"{row[0]}, time over floor", ratio, "≤", target))
                memory -= size.small / GIB
                name = f"{row[0]}, peak memory less the summary"
                figures.append(Figure(name, memory, "≤", 1.0, " GiB"))
            if not options.quick:
                shutil.rmtree(folder)
        heads = ("stage", "Tflop", "GB read", "GB written", "floor, s", "measured, s", "over floor")
        print(table([*heads, "peak, GiB"], rows), "\n", flush=True)

        Y = torch.randn(7030, 740, generator=torch.Generator().manual_seed(0))
        works = {
            "gram": lambda: seconds(
                lambda: gram(lambda start, stop: Y[start:stop], len(Y)), Y.device
            ),
            "operation": gemm_operation(torch.float64),
        }
        alone, operation = in_turns(works, 9).values()
        floors = [len(Y) * Y.shape[1] ** 2 * each for each in operation]
        ratio = over(alone, floors)
        width = size.inner + PROBES
        if not options.quick:
            size, width = FOR_RANKS, FOR_RANKS.outer + PROBES
            folder = Path(scratch) / str(size.N)
            child("1", folder, size.outer)
        one, two = ranks(folder, 3 if options.quick else 5)
        speedup = over(one, two)
        passes = [
            ["7,030 x 740 in memory", min(floors), min(alone), ratio],
            [f"{size.N:,} x {width} in files, one rank, on one core", "", min(one), ""],
            ["the same, two ranks, on a core each", "", min(two), f"{speedup:.2f} times faster"],
        ]
        print(table(["Gram matrix", "floor, s", "measured, s", ""], passes), "\n", flush=True)
        figures.append(Figure("Gram matrix in memory, time over floor", ratio, "≤", 1.5))
        figures.append(Figure("Gram matrix, two ranks over one", speedup, "≥", 1.6, "x"))

        dtypes = (torch.float32, torch.float64)[: 1 if options.quick else 2]
        found = list(accuracy(Path(scratch), dtypes))
        heads = ("N = 1,500, 100 / 200", "κ(Y)", "files", "QR in core", "over it")
        print(table(heads, [row for row, _ in found]), "\n", flush=True)
        worst = max(excess for _, excess in found)
        figures.append(Figure("residual over that of a QR, less 1", worst, "≤", 1e-3))
    finish(figures)


if __name__ == "__main__":
    main()
