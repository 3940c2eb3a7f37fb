"""One Hessian of mnist_mini from its parameters to the overlap, and the time to a given error.

355 eigenpairs from 710 products on 500 digits, beside curvlinops' products one vector at a time and
skerch 1.2.0's `seigh`. --quick: of random data, without errors.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.exact import STEPS, TOP, Exact, kept, load_exact, mnist_mini, network
from benchmarks.harness import Benchmark, Figure, Options, in_turns, over, say, table
from benchmarks.peers import Peer
from benchmarks.peers.products import seconds, timer
from benchmarks.pictures import draw
from benchmarks.rates import Work, gemm_operation, machine
from benchmarks.runs import quadratic
from benchmarks.tables.matvecs import VECTORS, Case
from skerch import seigh
from skerch.analysis.figures import BLACK, BLUE, VERMILLION
from skerch.analysis.overlap import overlap
from skerch.curvature import params_to_vector
from skerch.curvature.memory import keep_freed_memory
from skerch.jobs import pipeline
from skerch.jobs.commands.seigh.costs import workload
from skerch.jobs.problems import load_data, load_problem
from skerch.jobs.training.datapoints import hessian_batch

BENCHMARK = Benchmark("docs/performance.md", make="bench", quick=True)
INNER, PROBES, BLOCK = 710, 30, 256
STEP = STEPS[-1]
BEST = ("tape", 64)  # the fastest strategy and chunk size for this network
BUDGETS = (71, 142, 200, 284, 400, INNER)
OVERSAMPLED, HMT = "skerch 1.2.0, oversampled", "skerch 1.2.0, hmt"
OURS, OURS_HMT = f"ours, {BEST[0]} in chunks of {BEST[1]}", "the same, recovery hmt"
LOOP = f"{VECTORS}: {INNER + PROBES} products alone"
SINGLE, DOUBLE = "an operation in float32", "an operation in float64"
LOOKS = {"ours": (BLUE, "-"), OVERSAMPLED: (VERMILLION, "--"), HMT: (BLACK, ":")}
WHOLE = "parameters to overlap"
STAGES = {  # the functions whose time a stage is
    "products": [("operator.py", "_matmul")],
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
        self, inner: int = INNER, how: Sequence[str | int] = BEST, recovery: str = "nystrom"
    ) -> tuple[float, Pairs]:
        """The seconds from the parameters to the overlap, probes included, and the eigenpairs."""
        found: list[Tensor] = []

        def work() -> None:
            op = self.case.operator(*how)
            sizes = {"outer": inner // 2, "inner": inner, "probes": PROBES}
            pairs = seigh(op, rounds=2, recovery=recovery, **sizes)
            overlap(pairs.eigenvectors, params_to_vector(op.params), random_masks=0)
            found[:] = pairs.eigenvalues, pairs.eigenvectors

        return seconds(work), (found[0], found[1])

    def theirs(self, name: str, inner: int = INNER) -> tuple[float, Pairs]:
        """The seconds from the parameters to eigenpairs by skerch 1.2.0, and these."""
        outer = inner // 2 if name == HMT else inner // 3
        recovery = "hmt" if name == HMT else f"oversampled_{inner - outer}"
        path = self.folder / "pairs.pt"
        how = {"recovery": recovery, "outer": outer, "block": BLOCK, "path": str(path)}
        taken = self.peer.ask("decompose", **how)
        values, vectors = torch.load(path)
        return taken, (values.double(), vectors)

    def by(self, name: str, inner: int) -> tuple[float, Pairs]:
        """The same of either side."""
        return self.ours(inner) if name == "ours" else self.theirs(name, inner)


def measure(options: Options) -> Iterator[str | Figure]:
    """Floors by stage, all sides in turns, and the time to an error."""
    keep_freed_memory()
    with (
        Peer("curvlinops_products") as products,
        Peer("skerch_1_2") as peer,
        tempfile.TemporaryDirectory() as folder,
    ):
        case = digits(None if options.quick else options.root)
        bench = Bench(case, products, peer, Path(folder))
        for each in (products, peer):
            each.load(bench.case.network, bench.case.batch)
        yield from timings(bench, options.quick)
        if not options.quick:
            yield from time_to_error(load_exact(options.root, STEP), bench)


def digits(root: Path | None) -> Case:
    """mnist_mini after 1,000 steps of training, and 500 test digits, or random ones."""
    config = mnist_mini(root or "")
    problem = load_problem(config.problem)
    batch = torch.rand(500, 1, 16, 16), torch.arange(500) % 10
    if root:
        batch = hessian_batch(load_data(problem, "test"), "test", config.hessian)
    return Case("mnist_mini, 500", network(problem, kept(STEP)["parameters"]), batch, 64)


def stages(work: Callable[[], object]) -> dict[str, float]:
    """The seconds of one run by stage; what belongs to none is the range and the eigenvectors."""
    profile = cProfile.Profile(timer())
    total = seconds(lambda: profile.runcall(work))
    cumulative = {
        (Path(file).name, name): ct
        for (file, _, name), (_, _, _, ct, _) in pstats.Stats(profile).stats.items()
    }
    found = {stage: sum(map(cumulative.__getitem__, of)) for stage, of in STAGES.items()}
    found["test vectors and sketches"] -= found["products"]
    return found | {"range and eigenvectors": total - sum(found.values())}


def floors(case: Case, single: float, double: float) -> dict[str, float]:
    """The least seconds of each stage, from those of an operation in float32 and in float64."""
    sizes = {"outer": TOP, "inner": INNER, "probes": PROBES, "block_size": 64}
    config, must = quadratic(**sizes), Counter[str]()
    for task in pipeline.tasks(config):
        must.update(asdict(workload(task, config, case.size)))
    return {
        "products": single * case.operations()[1] * must["matvecs"],
        # of eight nonzeros a coordinate, which are added twice: to X, and of Y to ΩY
        "test vectors and sketches": single * 16 * must["sketched"],
        "Gram matrices": double * must["gram"],
        "small eigenproblems": double * 4 * must["cubes"],  # with vectors (divide and conquer)
        "overlap": double * 2 * case.size * TOP,
        "range and eigenvectors": double * must["products"],
    }


def timings(bench: Bench, quick: bool) -> Iterator[str | Figure]:
    """All sides in turns: the least seconds of each."""
    few = 10 if quick else 74
    loop = {"what": "products", "count": few, "matrix": False}
    works: dict[str, Work] = {
        LOOP: lambda: bench.products.ask(**loop)["seconds"] * (INNER + PROBES) / few,
        SINGLE: gemm_operation(torch.float32),
        DOUBLE: gemm_operation(torch.float64),
        OURS: lambda: bench.ours()[0],
        OVERSAMPLED: lambda: bench.theirs(OVERSAMPLED)[0],
        HMT: lambda: bench.theirs(HMT)[0],
        OURS_HMT: lambda: bench.ours(recovery="hmt")[0],
    }
    if not quick:
        auto = "ours, strategy chosen by the clock within"
        works[auto] = lambda: bench.ours(how=("auto",))[0]
    found = in_turns(works, 3 if quick else 7)
    operations = found.pop(SINGLE), found.pop(DOUBLE)
    least = {name: min(values) for name, values in found.items()}
    by_stage = min((stages(bench.ours) for _ in range(2)), key=lambda stage: sum(stage.values()))
    single, double = map(min, operations)
    rates = f"gemm {1e-9 / single:.0f} GFLOP/s in float32, {1e-9 / double:.0f} in float64"
    yield f"{machine()}; {rates}"
    floor = floors(bench.case, single, double)
    pairs = [(name, floor[name], taken) for name, taken in by_stage.items()]
    pairs.append(("together", sum(floor.values()), sum(by_stage.values())))
    rows = [(name, 1e3 * low, 1e3 * taken, taken / low) for name, low, taken in pairs]
    yield table((OURS, "floor, ms", "ms", "over floor"), rows)
    rows = [(name, value, f"{value / least[OURS]:.2f}x") for name, value in least.items()]
    yield table((f"{WHOLE}, 355 of 710, N = 7,030", "s", "ours is faster"), rows)

    by_turn = [sum(floors(bench.case, *turn).values()) for turn in zip(*operations, strict=True)]
    yield Figure(f"{WHOLE}: time over floor", over(found[OURS], by_turn), "≤", 2)
    if not quick:
        ratio = over(found[OVERSAMPLED], found[OURS])
        yield Figure(f"{WHOLE}: skerch 1.2.0's seigh over ours", ratio, "≥", 1, "x")
    ratio = over(found[HMT], found[OURS_HMT])
    yield Figure(f"{WHOLE}: skerch 1.2.0's over ours, both by hmt", ratio, "≥", 1, "x")


def time_to_error(exact: Exact, bench: Bench, turns: int = 2) -> Iterator[str]:
    """Error and least seconds of all sides at all budgets, and what ours takes to theirs."""
    errors: dict[str, list[float]] = {name: [] for name in LOOKS}
    taken: dict[str, list[float]] = {name: [] for name in LOOKS}
    for inner in BUDGETS:
        say(f"{inner} products")
        works = {name: partial(bench.by, name, inner) for name in LOOKS}
        for name, found in in_turns(works, turns).items():
            errors[name].append(error(exact, found[-1][1]))
            taken[name].append(min(spent for spent, _ in found))
    rows = []
    for name in (OVERSAMPLED, HMT):
        target, theirs = errors[name][-1], taken[name][-1]
        inner = fewest(exact, bench, target)
        ours = min(bench.ours(inner)[0] for _ in range(turns + 1))
        counts = f"{INNER}", f"{inner}"
        rows.append((f"{name}'s", target, *counts, theirs, ours, f"{theirs / ours:.1f}x"))
    heads = ("error", "over the best", "its products", "ours", "its s", "ours", "ours is faster")
    yield table(heads, rows)
    for title, values in ("error over the best of rank 355", errors), ("seconds", taken):
        by_budget = zip(BUDGETS, *values.values(), strict=True)
        yield table((f"products: {title}", *LOOKS), by_budget)
    by_products = {name: (look, BUDGETS, errors[name]) for name, look in LOOKS.items()}
    by_seconds = {name: (look, taken[name], errors[name]) for name, look in LOOKS.items()}
    axes = {"xscale": "log", "yscale": "log", "ylabel": f"residual over the best of rank {TOP}"}
    left = by_products, axes | {"xlabel": "products"}
    right = by_seconds, axes | {"xlabel": "seconds"}
    draw("time_to_error", left, right)


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
        say(f"{middle} products")
        if error(exact, bench.ours(middle)[1]) <= target:
            high = middle
        else:
            low = middle
    return high
