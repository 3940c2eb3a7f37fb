"""Sketched against exact eigenpairs at equal numbers of matvecs, and the error estimate's coverage.

--quick measures the targets at one step only, and without the tables.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import astuple, dataclass
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from benchmarks.exact import CACHE, STEPS, TOP, Exact, eigh, kept, load_exact, mnist_mini, network
from benchmarks.harness import IMAGES, Benchmark, Figure, Options, say, table
from skerch import aslinearoperator, load, seigh, synthmat
from skerch.a_posteriori import interval, residuals
from skerch.analysis.figures import BLACK, BLUE, GREY, LEGEND, VERMILLION, save
from skerch.decompositions.seigh import EighResult
from skerch.jobs.launchers.complete import complete
from skerch.jobs.problems import load_problem
from skerch.sketch_operators import KINDS

BENCHMARK = Benchmark("docs/accuracy.md", make="accuracy")
SEEDS = (0, 1, 2)
STEP = STEPS[-1]  # where only one is measured
DEFAULT = "sparse_sign"
BUDGETS = ((100, 200), (TOP, 442), (TOP, 710), (TOP, 1065), (TOP, 1420))
PROBES = 30


class Method(NamedTuple):
    """A recovery in a number of rounds."""

    recovery: str
    rounds: int

    def __str__(self) -> str:
        number = {1: "one round", 2: "two rounds", 3: "three rounds"}[self.rounds]
        return f"`{self.recovery}`" + (f", {number}" if self.recovery == "nystrom" else "")


TWO = Method("nystrom", 2)
METHODS = {
    TWO: (BLUE, "-"),
    Method("nystrom", 3): (BLACK, "-"),
    Method("nystrom", 1): (BLACK, "-."),
    Method("oversampled", 1): (VERMILLION, "--"),
    Method("hmt", 2): (GREY, ":"),
}
TARGETS = dict(
    zip(METHODS, (1.15, 1.08, 1.65, 2.9), strict=False)
)  # residual over best, 355 of 710


@dataclass(frozen=True)
class Accuracy:
    """How far sketched eigenpairs are from the exact ones, or the median over seeds."""

    residual: float  # over the best of rank k
    top: float  # largest relative error of |λ| among the ten largest
    half: float  # ‖VᵀW‖_F² / r for the leading r = k/2 of both
    whole: float  # and for r = k
    estimate: float  # estimated over true residual


NAMES: dict[str, Callable[[Accuracy], str]] = {  # what is compared, and its digits
    "residual / best": lambda a: f"{a.residual:.3f}",
    "top ten": lambda a: f"{a.top:.1e}",
}


def compare(exact: Exact, values: Tensor, W: Tensor, residual: Tensor) -> Accuracy:
    """The accuracy of eigenpairs (k,), (N, k) and of their estimated residuals (k + 1,)."""
    k, W = len(values), W.double()
    true = float(torch.linalg.norm(exact.H - (W * values) @ W.T))
    best = exact.eigenvalues
    if exact.vectors is None:
        half = whole = float("nan")
    else:
        cosines = (exact.vectors[:, :k].T @ W).square()
        half, whole = float(cosines[: k // 2, : k // 2].sum() / (k // 2)), float(cosines.sum() / k)
    top = float((values[:10].abs() / best[:10].abs() - 1).abs().max())
    best_residual = float(torch.linalg.norm(best[k:]))
    return Accuracy(true / best_residual, top, half, whole, float(residual[-1]) / true)


def true_residuals(H: Tensor, values: Tensor, W: Tensor) -> Tensor:
    """‖H - H_r‖_F for r = 0 … k, (k + 1,): ‖E‖² + Σ_{j>r} λ_j (λ_j + 2 w_jᵀE w_j), E = H - H_k."""
    E = H - (W * values) @ W.T
    terms = values * (values + 2 * (W * (E @ W)).sum(dim=0))
    tails = torch.cat([terms.flip(0).cumsum(0).flip(0), terms.new_zeros(1)])
    return (E.square().sum() + tails).sqrt()


def median(found: Iterable[Accuracy]) -> Accuracy:
    """The median of each figure."""
    rows = torch.tensor([astuple(accuracy) for accuracy in found], dtype=torch.float64)
    return Accuracy(*rows.median(dim=0).values.tolist())


def decompose(
    H: Tensor, method: Method, kind: str, outer: int, inner: int, seed: int
) -> EighResult:
    """`seigh` on a dense matrix."""
    op, how = aslinearoperator(H, self_adjoint=True), method._asdict()
    return seigh(op, outer=outer, inner=inner, sketch=kind, probes=PROBES, seed=seed, **how)


@dataclass(frozen=True)
class Bench:
    """The sketches of mnist_mini's Hessians, each made once."""

    root: Path
    vectors: Path | None  # where eigenvectors are cached; None: do without

    @lru_cache(maxsize=1)  # noqa: B019
    def exact(self, step: int) -> Exact:
        """The exact Hessian of a step."""
        say(f"exact Hessian of step {step}")
        return load_exact(self.root, step, self.vectors)

    @cache  # noqa: B019
    def sketched(
        self, step: int, method: Method, kind: str, outer: int, inner: int, seed: int
    ) -> tuple[Accuracy, Tensor]:
        """In core and single precision: accuracy and eigenvalues."""
        say(f"step {step}, {method}, {kind}, {outer} of {inner}, seed {seed}")
        exact = self.exact(step)
        found = decompose(exact.H.float(), method, kind, outer, inner, seed)
        accuracy = compare(exact, found.eigenvalues, found.eigenvectors, found.residual)
        return accuracy, found.eigenvalues

    def accuracy(
        self, step: int, method: Method, kind: str = DEFAULT, outer: int = TOP, inner: int = 710
    ) -> Accuracy:
        """The median over the seeds."""
        return median(self.sketched(step, method, kind, outer, inner, s)[0] for s in SEEDS)

    def through_files(self, method: Method, seeds: Iterable[int]) -> list[tuple[Accuracy, Tensor]]:
        """The same by the pipeline, from Hessian products to eigh.h5, at one step."""
        found = []
        problem = load_problem(mnist_mini(self.root).problem)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder, f"checkpoint_{STEP}.pt")
            torch.save(network(problem, kept(STEP)["parameters"]).state_dict(), checkpoint)
            for seed in seeds:
                config = mnist_mini(
                    self.root, f"run_dir={folder}/run", f"name=seed-{seed}",
                    f"training.checkpoints={checkpoint}", f"training.record_steps=[{STEP}]",
                    f"sketch.recovery={method.recovery}", f"sketch.rounds={method.rounds}",
                    f"sketch.seed={seed}", "hessian.strategy=batched", "keep_blocks=false",
                )  # fmt: skip
                with redirect_stdout(sys.stderr):
                    assert not complete(config)
                pairs = load(config.run_dir, f"seed-{seed}")[STEP, "test"]
                values, W = pairs.eigenvalues, pairs.eigenvectors[:]
                found.append((compare(self.exact(STEP), values, W, pairs.residual), values))
        return found


def measure(options: Options) -> Iterator[str | Figure]:
    """The tables, and what is promised."""
    bench = Bench(options.root, None if options.quick else CACHE)
    if not options.quick:
        yield from by_step_and_budget(bench)
    for step in [STEP] if options.quick else STEPS:
        for method, target in TARGETS.items():
            ratio = bench.accuracy(step, method).residual
            name = f"{method}: residual / best, step {step}"
            yield Figure(name, ratio, "≤", target, form=".3f")
    yield from by_files(bench, SEEDS[:1] if options.quick else SEEDS)
    if not options.quick:
        draw(bench)
        yield from synthetic()
        yield from coverage(bench)
    yield "**Targets**"


def by_files(bench: Bench, seeds: tuple[int, ...]) -> Iterator[str | Figure]:
    """In core and through files: residual and eigenvalues, of the same seeds."""
    rows = []
    for method, target in TARGETS.items():
        in_core = [bench.sketched(STEP, method, DEFAULT, TOP, 710, seed) for seed in seeds]
        files = bench.through_files(method, seeds)
        pairs = list(zip(in_core, files, strict=True))
        apart = max(float(((g - f).abs() / f.abs()).max()) for (_, f), (_, g) in pairs)
        core, filed = (median(a for a, _ in found).residual for found in (in_core, files))
        rows.append([method, f"{core:.4f}", f"{filed:.4f}", f"{apart:.1e}"])
        name = f"{method}: residual / best, through files"
        yield Figure(name, filed, "≤", target, form=".3f")
        worst = max(abs(g.residual / f.residual - 1) for (f, _), (g, _) in pairs)
        name = f"{method}: through files against in core, residual"
        yield Figure(name, worst, "≤", 1e-3, form=".1e")
    heads = ("", "in core", "through files", "eigenvalues, largest relative difference")
    yield table(heads, rows, "In core and through files: residual / best, 355 of 710")


def by_step_and_budget(bench: Bench) -> Iterator[str]:
    """mnist_mini by step, by budget and by sketch kind."""
    rows = []
    for step, method in product(STEPS, METHODS):
        found = astuple(bench.accuracy(step, method))
        rows.append([step, method, *map(format, found, (".3f", ".1e", ".3f", ".3f", ".3f"))])
    heads = ("step", "", *NAMES, "overlap, k/2", "overlap, k", "estimate / true")
    yield table(heads, rows, "mnist_mini, 355 eigenpairs of 710 matvecs")
    for name, part in NAMES.items():
        rows = [
            [method]
            + [
                part(bench.accuracy(STEP, method, DEFAULT, k, s)) if possible(method, k, s) else "-"
                for k, s in BUDGETS
            ]
            for method in METHODS
        ]
        heads = ("", *(f"{k} of {s}" for k, s in BUDGETS))
        yield table(heads, rows, f"mnist_mini, step {STEP}, by budget: {name}")
    rows = [
        [method, *(f"{bench.accuracy(STEP, method, kind).residual:.3f}" for kind in KINDS)]
        for method in METHODS
    ]
    title = f"mnist_mini, step {STEP}, 355 of 710, by sketch kind: residual / best"
    yield table(("", *KINDS), rows, title)


def possible(method: Method, outer: int, inner: int) -> bool:
    """Whether a method can do with so few matvecs."""
    return method.recovery != "hmt" or 2 * outer <= inner


def families(n: int, rank: int) -> Iterable[tuple[str, Tensor]]:
    """The matrices of TYUC 2019, section 7.3.1; the decaying ones with alternating signs."""
    for noise in (1e-4, 1e-2, 1e-1):
        H = synthmat.lowrank_noise((n, n), rank, noise, 0, sym=True)
        yield f"low rank + noise, ξ = {noise:g}", H
    for p in (0.5, 1, 2):
        spectrum = synthmat.polynomial_decay(n, rank, p)
        yield f"polynomial decay, p = {p}", synthmat.symmetric(spectrum, 0, "alternate")[0]
    for q in (0.01, 0.1, 0.5):
        spectrum = synthmat.exponential_decay(n, rank, q)
        yield f"exponential decay, q = {q}", synthmat.symmetric(spectrum, 0, "alternate")[0]


def synthetic() -> Iterator[str]:
    """The synthetic matrices: residual over the best one, and top ten."""
    found: dict[str, list[Accuracy]] = {}
    for name, H in families(1000, 10):
        say(name)
        exact, found[name] = Exact(H, *eigh(H)), []
        for method in METHODS:
            pairs = [decompose(H, method, DEFAULT, 20, 40, seed) for seed in SEEDS]
            each = (compare(exact, r.eigenvalues, r.eigenvectors, r.residual) for r in pairs)
            found[name].append(median(each))
    for (title, part), size in zip(
        NAMES.items(), (", N = 1000, rank 10, 20 of 40", ""), strict=True
    ):
        rows = [[name, *map(part, accuracies)] for name, accuracies in found.items()]
        yield table(("", *METHODS), rows, f"Synthetic{size}: {title}")


def coverage(bench: Bench, draws: int = 400) -> Iterator[str | Figure]:
    """How often the interval of the a-posteriori estimate holds the true residuals."""
    n, k = 300, 20
    ones = torch.ones(k + 1, dtype=torch.float64)
    cases: dict[str, Callable[[int], tuple[Tensor, Tensor, Tensor]]] = {}
    for name, H in families(n, 5):
        cases[name] = lambda seed, H=H: _sketch(H, k, seed)
    H, _ = synthmat.symmetric(torch.cat([ones, torch.zeros(n - k - 1).double()]), 0, "alternate")
    cases["residual of rank one, the worst case"] = lambda seed: _sketch(H, k, seed)
    cases[f"mnist_mini, step {STEP}, 355 of 710"] = _fixed_sketch(bench.exact(STEP).H)
    rows, least = [], 1.0
    for name, draw in cases.items():
        say(f"coverage: {name}")
        found = [draw(seed) for seed in range(draws)]
        shares = []
        for confidence in (0.95, 0.5):
            held = []
            for values, estimate, true in found:
                lower, upper = interval(values, estimate, PROBES, confidence=confidence)
                held.append((lower <= true) & (true <= upper))
            inside = torch.stack(held).double()
            shares += [float(inside[:, -1].mean()), float(inside.prod(dim=1).mean())]
        least = min(least, *shares[:2])
        squares = torch.stack([(e[-1] / true[-1]).square() for _, e, true in found])
        spread = float((squares.sqrt() - 1).square().mean().sqrt())
        known = found[0][2][-1] > 1e-7 * found[0][2][0]
        error = [f"{float(squares.mean()):.3f}", f"{spread:.1%}"] if known else ["-", "-"]
        rows.append([name, *error, *(f"{share:.1%}" for share in shares)])
    of_e = ("mean e² / ‖E‖²", "rms error of e")
    heads = ("", *of_e, "95 %: rank k", "all ranks", "50 %: rank k", "all")
    yield table(heads, rows, f"Coverage of the interval, {PROBES} probes, {draws} draws a case")
    worst = f"not covered at 95 %, the worst of {len(cases)} cases"
    yield Figure(worst, 1 - least, "≤", 0.05, form=".3f")


def _sketch(H: Tensor, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values, estimated and true residuals of a sketch of its own."""
    r = decompose(H, TWO, DEFAULT, k, 2 * k, seed)
    return r.eigenvalues, r.residual, true_residuals(H, r.eigenvalues, r.eigenvectors)


def _fixed_sketch(H: Tensor) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """The same of one sketch of a large matrix, with probes of their own."""
    r = decompose(H.float(), TWO, DEFAULT, TOP, 710, 0)
    values, W = r.eigenvalues, r.eigenvectors.double()
    true = true_residuals(H, values, W)
    single = H.float()

    def draw(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        Z = torch.randn(len(H), PROBES, generator=torch.Generator().manual_seed(seed))
        HZ = (single @ Z).double()
        return values, residuals(values, W.T @ Z.double(), W.T @ HZ, HZ.square().sum(dim=0)), true

    return draw


def draw(bench: Bench) -> None:
    """Residual and top ten against the matvecs, and the ratio of eigenvalues by index."""
    figure = Picture(figsize=(12.6, 3.8), layout="constrained")
    figure.suptitle(f"mnist_mini, step {STEP}, {TOP} eigenpairs", fontsize=13, fontweight="bold")
    residual, top, ratio = figure.subplots(1, 3)
    budgets = [s for k, s in BUDGETS if k == TOP]
    exact = bench.exact(STEP).eigenvalues[:TOP].abs()
    for method, (colour, line) in METHODS.items():
        able = [s for s in budgets if possible(method, TOP, s)]
        found = [bench.accuracy(STEP, method, DEFAULT, TOP, s) for s in able]
        look = {"color": colour, "linestyle": line, "label": str(method).replace("`", "")}
        residual.plot(able, [a.residual for a in found], marker="o", **look)
        top.plot(able, [a.top for a in found], marker="o", **look)
        values = bench.sketched(STEP, method, DEFAULT, TOP, 710, SEEDS[0])[1].abs()
        ratio.plot(range(1, TOP + 1), values / exact, **look)
    residual.axhline(1, color="0.6", linewidth=0.8)
    ratio.axhline(1, color="0.6", linewidth=0.8)
    residual.set(title="Residual over the best of rank 355", xlabel="matvecs", ylabel="ratio")
    top.set(title="Largest error of the top ten", xlabel="matvecs", ylabel="relative", yscale="log")
    ratio.set(title="Eigenvalues, of 710 matvecs", xlabel="index", ylabel="|sketched| / |exact|")
    residual.legend(**LEGEND)
    save(figure, IMAGES / "accuracy.png")
