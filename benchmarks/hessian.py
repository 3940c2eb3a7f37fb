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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from exact import STEPS, TOP, Exact, kept, load_exact, mnist_mini, network
from figures import Figure, Work, finish, gemm_operation, in_turns, machine, over, table
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import LogLocator, NullFormatter
from matvecs import VECTORS, Case, operations
from peers import Peer
from peers.products import seconds, timer
from torch import Tensor

from skerch import seigh
from skerch.analysis.figures import BLACK, BLUE, LEGEND, VERMILLION, save
from skerch.analysis.overlap import overlap
from skerch.curvature import params_to_vector
from skerch.jobs.problems import load_data, load_problem
from skerch.jobs.training.datapoints import hessian_batch

INNER, PROBES, BLOCK = 710, 30, 256
STEP = STEPS[-1]
BEST = ("tape", 64)  # the fastest strategy and chunk size for this network
IMAGE = Path("docs/images/time_to_error.png")
BUDGETS = (71, 142, 200, 284, 400, INNER)
OVERSAMPLED, HMT = "skerch 1.2.0, oversampled", "skerch 1.2.0, hmt"
OURS_HMT = "the same, recovery hmt"
SINGLE, DOUBLE = "an operation in float32", "an operation in float64"
LOOKS = {"ours": (BLUE, "-"), OVERSAMPLED: (VERMILLION, "--"), HMT: (BLACK, ":")}
STAGES = {  # the functions whose time a stage is
    "products": [("hessian.py", "_matmul")],
    "test vectors and sketches": [("measure.py", "measure")],
    "Gram matrices": [("gram.py", "gram")],
    "small eigenproblems": [("gram.py", "orthonormalise"), ("solve.py", "solve")],
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
        overlap(found.eigenvectors, params_to_vector(op.params), random_masks=0)
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
    return seconds(work, torch.device("cpu"))


def stages(work: Callable[[], object]) -> dict[str, float]:
    """The seconds of one run by stage; what belongs to none is the range and the eigenvectors."""
    profile = cProfile.Profile(timer())
    total = clock(lambda: profile.runcall(work))
    cumulative = {
        (Path(file).name, name): ct
        for (file, _, name), (_, _, _, ct, _) in pstats.Stats(profile).stats.items()
    }
    found = {stage: sum(map(cumulative.__getitem__, of)) for stage, of in STAGES.items()}
    found["test vectors and sketches"] -= found["products"]
    return found | {"range and eigenvectors": total - sum(found.values())}


def floors(case: Case, of: Callable[[torch.dtype, float], float]) -> dict[str, float]:
    """The least seconds of each stage by its floating-point operations."""
    N, half, all_columns = case.size, INNER // 2, INNER + PROBES
    _, product = operations(case)
    return {
        "products": of(torch.float32, product * all_columns),
        # two of eight nonzeros a coordinate: X and ΩY for half of the columns and the probes
        "test vectors and sketches": of(torch.float32, 16 * N * (half + PROBES)),
        "Gram matrices": of(torch.float64, N * (half**2 + all_columns**2)),
        # eigh with vectors, 4 n³ (divide and conquer): of the Gram matrices, of XᵀY, of the core
        "small eigenproblems": of(torch.float64, 4 * (half**3 + 3 * INNER**3)),
        "overlap": of(torch.float64, 2 * N * TOP),
        "range and eigenvectors": of(torch.float64, 2 * N * (half**2 + INNER * TOP)),
    }


def timings(bench: Bench, quick: bool) -> list[Figure]:
    """All sides in turns: prints the least seconds of each, and returns the figures.

    With --quick one thread works, and skerch 1.2.0's default takes as long, at 3.6 times the error.
    """
    turns, few = (3, 10) if quick else (7, 74)
    case, total = bench.case, INNER + PROBES
    loop = f"{VECTORS}: {total} products alone"
    given = f"ours, {BEST[0]} in chunks of {BEST[1]}"
    best = partial(bench.ours, INNER, *BEST)
    bench.products.ask("products", count=1, matrix=False)
    works: dict[str, Work] = {
        loop: lambda: bench.products.ask("products", count=few, matrix=False)["seconds"] / few,
        SINGLE: gemm_operation(torch.float32),
        DOUBLE: gemm_operation(torch.float64),
        given: lambda: clock(best),
        OVERSAMPLED: lambda: bench.theirs(OVERSAMPLED, INNER)[0],
        HMT: lambda: bench.theirs(HMT, INNER)[0],
        OURS_HMT: lambda: clock(lambda: best(recovery="hmt")),
    }
    if not quick:
        works["ours, strategy chosen by the clock within"] = lambda: clock(
            lambda: bench.ours(INNER)
        )
    found = in_turns(works, turns)
    found[loop] = [total * product for product in found[loop]]
    operation = found.pop(SINGLE), found.pop(DOUBLE)

    def floor(single: float, double: float) -> dict[str, float]:
        each = {torch.float32: single, torch.float64: double}
        return floors(case, lambda dtype, operations: operations * each[dtype])

    least = {name: min(values) for name, values in found.items()}
    by_stage = min((stages(best) for _ in range(2)), key=lambda stage: sum(stage.values()))
    fastest = min(operation[0]), min(operation[1])
    single, double = (1e-9 / each for each in fastest)
    print(f"{machine()}; gemm {single:.0f} GFLOP/s in float32, {double:.0f} in float64\n")
    print_timings(least, given, by_stage, floor(*fastest))
    floor_by_turn = [sum(floor(*turn).values()) for turn in zip(*operation, strict=True)]
    whole = "parameters to overlap"
    figures = [Figure(f"{whole}: time over floor", over(found[given], floor_by_turn), "≤", 2)]
    if not quick:
        ratio = over(found[OVERSAMPLED], found[given])
        figures.append(Figure(f"{whole}: skerch 1.2.0's seigh over ours", ratio, "≥", 1, "x"))
    ratio = over(found[HMT], found[OURS_HMT])
    return [*figures, Figure(f"{whole}: skerch 1.2.0's over ours, both by hmt", ratio, "≥", 1, "x")]


def print_timings(
    least: dict[str, float], given: str, by_stage: dict[str, float], floor: dict[str, float]
) -> None:
    """Floors by stage, and the whole side by side."""
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
        figures = timings(bench, options.quick)
        if not options.quick and (options.root / "MNIST" / "raw").is_dir():
            time_to_error(load_exact(str(options.root), STEP), bench, turns=2)
        elif not options.quick:
            print(f"No digits in {options.root}: the data were random, and there are no errors.\n")
    finish(figures)


if __name__ == "__main__":
    main()
