"""One Hessian of mnist_mini from its parameters to the overlap, and the time to a given error.

    python benchmarks/hessian.py [--quick] [--root PATH]

355 eigenpairs from 710 products on 500 digits, beside curvlinops' products one vector at a time and
skerch 1.2.0's `seigh`. PATH holds MNIST/raw; without it the data are random and errors left out,
as with --quick. Prints Markdown and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from exact import STEPS, TOP, Exact, kept, load_exact, mnist_mini, network
from figures import Figure, finish, gemm_rate, machine, table
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import LogLocator, NullFormatter
from matvecs import VECTORS, Case, operations
from peers import Peer
from torch import Tensor

from skerch import seigh
from skerch.analysis.figures import BLACK, BLUE, LEGEND, VERMILLION, save
from skerch.analysis.overlap import overlap
from skerch.curvature import params_to_vector
from skerch.jobs.datapoints import hessian_batch
from skerch.jobs.problems import load_data, load_problem

INNER, PROBES, BLOCK = 710, 30, 256
STEP = STEPS[-1]
BEST = ("tape", 64)  # the fastest strategy and chunk size for this network
IMAGE = Path("docs/images/time_to_error.png")
BUDGETS = (71, 142, 200, 284, 400, INNER)
OVERSAMPLED, HMT = "skerch 1.2.0, oversampled", "skerch 1.2.0, hmt"
OURS_HMT = "the same, recovery hmt"
LOOKS = {"ours": (BLUE, "-"), OVERSAMPLED: (VERMILLION, "--"), HMT: (BLACK, ":")}
STAGES = {  # the functions whose time a stage is
    "products": [("hessian.py", "_matmul")],
    "test vectors and sketches": [("measure.py", "measure")],
    "Gram matrices": [("gram.py", "gram")],
    "small eigenproblems": [("gram.py", "orthonormalise"), ("core.py", "solve")],
    "overlap": [("overlap.py", "overlap")],
}
Pairs = tuple[Tensor, Tensor]  # eigenvalues (k,) and eigenvectors (N, k)


@dataclass(frozen=True)
class Bench:
    """The problem, and how it is decomposed by either side."""

    case: Case
    products: Peer  # curvlinops
    peer: Peer  # skerch 1.2.0
    folder: Path

    def ours(
        self,
        inner: int,
        strategy: str = "auto",
        chunk_size: int | None = None,
        recovery: str = "nystrom",
    ) -> Pairs:
        """From the parameters to the overlap, with `inner` products and the probes."""
        op = self.case.operator(strategy, chunk_size)
        found = seigh(op, outer=inner // 2, inner=inner, probes=PROBES, recovery=recovery)
        overlap(found.eigenvectors, params_to_vector(op.params))
        return found.eigenvalues, found.eigenvectors

    def theirs(self, name: str, inner: int) -> tuple[float, Pairs]:
        """The seconds from the parameters to eigenpairs by skerch 1.2.0, and these."""
        outer = inner // 2 if name == HMT else inner // 3
        recovery = "hmt" if name == HMT else f"oversampled_{inner - outer}"
        path = self.folder / "pairs.pt"
        taken = self.peer.ask(
            "decompose", recovery=recovery, outer=outer, seed=0, block=BLOCK, path=str(path)
        )
        values, vectors = torch.load(path)
        return taken, (values.double(), vectors)


def digits(root: Path) -> Case:
    """mnist_mini after 1,000 steps of training, and 500 test digits; random data without digits."""
    if (root / "MNIST" / "raw").is_dir():
        config = mnist_mini(str(root))
        problem = load_problem(config.problem)
        batch = hessian_batch(load_data(problem, "test"), "test", config.hessian)
    else:
        problem = load_problem({"name": "mnist_mini"})
        batch = torch.rand(500, 1, 16, 16), torch.arange(500) % 10
    return Case("mnist_mini, 500", network(problem, kept(STEP)["parameters"]), batch, 64)


def clock(work: Callable[[], object]) -> float:
    """The seconds of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def stages(work: Callable[[], object]) -> dict[str, float]:
    """The seconds of one run by stage; what belongs to none is the range and the eigenvectors."""
    profile = cProfile.Profile()
    total = clock(lambda: profile.runcall(work))
    cumulative = {
        (Path(file).name, name): ct
        for (file, _, name), (_, _, _, ct, _) in pstats.Stats(profile).stats.items()
    }
    found = {stage: sum(map(cumulative.__getitem__, of)) for stage, of in STAGES.items()}
    found["test vectors and sketches"] -= found["products"]
    return found | {"range and eigenvectors": total - sum(found.values())}


def floors(case: Case, seconds: Callable[[torch.dtype, float], float]) -> dict[str, float]:
    """The least seconds of each stage by its floating-point operations."""
    N, half, all_columns = case.size, INNER // 2, INNER + PROBES
    _, product = operations(case)
    return {
        "products": seconds(torch.float32, product * all_columns),
        # two of eight nonzeros a coordinate: X and ΩY for half of the columns and the probes
        "test vectors and sketches": seconds(torch.float32, 16 * N * (half + PROBES)),
        "Gram matrices": seconds(torch.float64, N * (half**2 + all_columns**2)),
        # eigh with vectors, 4 n³ (divide and conquer): of the Gram matrices, of XᵀY, of the core
        "small eigenproblems": seconds(torch.float64, 4 * (half**3 + 3 * INNER**3)),
        "overlap": seconds(torch.float64, 2 * N * TOP),
        "range and eigenvectors": seconds(torch.float64, 2 * N * (half**2 + INNER * TOP)),
    }


def timings(bench: Bench, turns: int, few: int) -> tuple[list[Figure], dict[str, float]]:
    """Each side by turns, the least of several; the figures, and the seconds by name."""
    given = f"ours, {BEST[0]} in chunks of {BEST[1]}"
    total = INNER + PROBES
    found: dict[str, list[float]] = {}
    best = partial(bench.ours, INNER, *BEST)
    bench.products.ask("products", count=1, matrix=False)
    for turn in range(turns + 1):
        print(f"turn {turn} of {turns}", file=sys.stderr, flush=True)
        loop = bench.products.ask("products", count=few, matrix=False)["seconds"] / few * total
        row = {
            f"{VECTORS}: {total} products alone": loop,
            OVERSAMPLED: bench.theirs(OVERSAMPLED, INNER)[0],
            HMT: bench.theirs(HMT, INNER)[0],
            "ours, strategy chosen by the clock within": clock(lambda: bench.ours(INNER)),
            given: clock(best),
            OURS_HMT: clock(lambda: best(recovery="hmt")),
        }
        for name, value in row.items() if turn else ():  # the first is for warmth
            found.setdefault(name, []).append(value)
    least = {name: min(values) for name, values in found.items()}
    by_stage = min((stages(best) for _ in range(turns)), key=lambda stage: sum(stage.values()))
    print_timings(bench.case, least, given, by_stage)
    ours = least[given]
    loop, theirs = next(iter(least.values())), least[OVERSAMPLED]
    return [
        Figure("parameters to overlap: curvlinops' loop over ours", loop / ours, "≥", 15, "x"),
        Figure("parameters to overlap: skerch 1.2.0's seigh over ours", theirs / ours, "≥", 1, "x"),
        Figure("the same, both by hmt", least[HMT] / least[OURS_HMT], "≥", 1, "x"),
    ], least


def print_timings(
    case: Case, least: dict[str, float], given: str, by_stage: dict[str, float]
) -> None:
    """Floors by stage, and the whole side by side."""
    rates = {dtype: gemm_rate(dtype) for dtype in (torch.float32, torch.float64)}
    floor = floors(case, lambda dtype, operations: operations / rates[dtype])
    single, double = (rate / 1e9 for rate in rates.values())
    print(f"{machine()}; gemm {single:.0f} GFLOP/s in float32, {double:.0f} in float64\n")
    rows = [(k, floor[k] * 1e3, s * 1e3, s / floor[k]) for k, s in by_stage.items()]
    sums = sum(floor.values()), sum(by_stage.values())
    rows.append(("together", sums[0] * 1e3, sums[1] * 1e3, sums[1] / sums[0]))
    print(table((given, "floor, ms", "ms", "over floor"), rows), end="\n\n")
    heads = ("parameters to overlap, 355 of 710, N = 7,030", "s", "ours is faster")
    rows = [(name, value, f"{value / least[given]:.2f}x") for name, value in least.items()]
    print(table(heads, rows), end="\n\n", flush=True)


def error(exact: Exact, pairs: Pairs) -> float:
    """‖H - W diag(λ) Wᵀ‖_F over the best of rank 355."""
    values, W = pairs[0], pairs[1].double()
    best = torch.linalg.norm(exact.eigenvalues[TOP:])
    return float(torch.linalg.norm(exact.H - (W * values) @ W.T) / best)


def fewest(exact: Exact, bench: Bench, target: float) -> int:
    """The fewest products with which ours has at most this error, by bisection."""
    low, high = 20, INNER
    while high - low > 2:
        middle = (low + high) // 4 * 2
        print(f"{middle} products", file=sys.stderr, flush=True)
        if error(exact, bench.ours(middle, *BEST)) <= target:
            high = middle
        else:
            low = middle
    return high


def curves(exact: Exact, bench: Bench, turns: int) -> Iterator[tuple[str, int, float, float]]:
    """(method, products, error, least seconds) of all methods at all budgets, in turns."""
    for inner in BUDGETS:
        print(f"{inner} products", file=sys.stderr, flush=True)
        best = partial(bench.ours, inner, *BEST)
        seconds: dict[str, list[float]] = {name: [] for name in LOOKS}
        pairs: dict[str, Pairs] = {"ours": best()}
        for _ in range(turns):
            seconds["ours"].append(clock(best))
            for name in (OVERSAMPLED, HMT):
                taken, pairs[name] = bench.theirs(name, inner)
                seconds[name].append(taken)
        for name in LOOKS:
            yield name, inner, error(exact, pairs[name]), min(seconds[name])


def time_to_error(exact: Exact, bench: Bench, turns: int) -> None:
    """The table and the picture."""
    points = list(curves(exact, bench, turns))
    rows = []
    for name in (OVERSAMPLED, HMT):
        (target, taken), *_ = ((e, s) for n, inner, e, s in points if (n, inner) == (name, INNER))
        inner = fewest(exact, bench, target)
        ours = min(clock(lambda inner=inner: bench.ours(inner, *BEST)) for _ in range(turns + 1))
        counts = f"{INNER}", f"{inner}"
        rows.append((f"{name}'s", target, *counts, taken, ours, f"{taken / ours:.1f}x"))
    heads = ("error", "over the best", "its products", "ours", "its s", "ours", "ours is faster")
    print(table(heads, rows), end="\n\n")
    rows = [(f"{inner}", *(e for n, i, e, _ in points if i == inner)) for inner in BUDGETS]
    print(table(("products: error over the best of rank 355", *LOOKS), rows), end="\n\n")
    rows = [(f"{inner}", *(s for n, i, _, s in points if i == inner)) for inner in BUDGETS]
    print(table(("products: seconds", *LOOKS), rows), end="\n\n", flush=True)
    figure = Picture(figsize=(8.4, 3.6), layout="constrained")
    for axes, column, label in zip(
        figure.subplots(1, 2, sharey=True), (1, 3), ("products", "seconds"), strict=True
    ):
        for name, (colour, line) in LOOKS.items():
            of = [point for point in points if point[0] == name]
            xs, ys = [p[column] for p in of], [p[2] for p in of]
            axes.plot(xs, ys, color=colour, linestyle=line, marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel=label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
    first, _ = figure.axes
    first.set(ylabel=f"residual over the best of rank {TOP}")
    first.legend(**LEGEND)
    save(figure, IMAGE)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns, no errors")
    parser.add_argument("--root", type=Path, default=Path("../shared/data"), help="of MNIST/raw")
    options = parser.parse_args()
    with (
        Peer("curvlinops_products") as products,
        Peer("skerch_1_2") as peer,
        tempfile.TemporaryDirectory() as folder,
    ):
        case = digits(options.root)
        products.load(case.network, case.batch)
        peer.load(case.network, case.batch)
        bench = Bench(case, products, peer, Path(folder))
        figures, _ = timings(bench, *((2, 37) if options.quick else (5, 74)))
        if not options.quick and (options.root / "MNIST" / "raw").is_dir():
            time_to_error(load_exact(str(options.root), STEP), bench, turns=2)
        elif not options.quick:
            print(f"No digits in {options.root}: the data were random, and there are no errors.\n")
    finish(figures)


if __name__ == "__main__":
    main()
