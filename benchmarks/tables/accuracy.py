"""Sketched against exact eigenpairs at equal numbers of matvecs, and the error estimate's coverage.

--quick measures the targets at one step only, and without the tables.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.exact import CACHE, STEPS, TOP, Exact, eigh, kept, load_exact, mnist_mini, network
from benchmarks.harness import Benchmark, Figure, Options, say, table
from benchmarks.pictures import Curves, draw
from skerch import aslinearoperator, load, seigh, synthmat
from skerch.a_posteriori import interval, residuals
from skerch.analysis.figures import BLACK, BLUE, GREY, VERMILLION
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
        rounds = ("", ", one round", ", two rounds", ", three rounds")[self.rounds]
        return f"`{self.recovery}`" + rounds * (self.recovery == "nystrom")


TWO = Method("nystrom", 2)
METHODS = {
    TWO: (BLUE, "-"),
    Method("nystrom", 3): (BLACK, "-"),
    Method("nystrom", 1): (BLACK, "-."),
    Method("oversampled", 1): (VERMILLION, "--"),
    Method("hmt", 2): (GREY, ":"),
}
# residual over best, 355 of 710
TARGETS = dict(zip(METHODS, (1.15, 1.08, 1.65, 2.9), strict=False))


class Accuracy(NamedTuple):
    """How far sketched eigenpairs are from the exact ones, or the median over seeds."""

    residual: float  # over the best of rank k
    top: float  # largest relative error of |λ| among the ten largest
    half: float  # ‖VᵀW‖_F² / r for the leading r = k/2 of both
    whole: float  # and for r = k
    estimate: float  # estimated over true residual


Part = Callable[[Accuracy], str]
NAMES: dict[str, Part] = {  # what is compared, and its digits
    "residual / best": lambda a: f"{a.residual:.3f}",
    "top ten": lambda a: f"{a.top:.1e}",
}


def compare(exact: Exact, values: Tensor, W: Tensor, residual: Tensor) -> Accuracy:
    """The accuracy of eigenpairs (k,), (N, k) and of their estimated residuals (k + 1,)."""
    k, W, best = len(values), W.double(), exact.eigenvalues
    true = float(torch.linalg.norm(exact.H - (W * values) @ W.T))
    half = whole = math.nan
    if exact.vectors is not None:
        cosines = (exact.vectors[:, :k].T @ W).square()
        half, whole = float(cosines[: k // 2, : k // 2].sum() / (k // 2)), float(cosines.sum() / k)
    top = float((values[:10].abs() / best[:10].abs() - 1).abs().max())
    return Accuracy(true / float(best[k:].norm()), top, half, whole, float(residual[-1]) / true)


def true_residuals(H: Tensor, values: Tensor, W: Tensor) -> Tensor:
    """‖H - H_r‖_F for r = 0 … k, (k + 1,): ‖E‖² + Σ_{j>r} λ_j (λ_j + 2 w_jᵀE w_j), E = H - H_k."""
    E = H - (W * values) @ W.T
    terms = values * (values + 2 * (W * (E @ W)).sum(dim=0))
    tails = torch.cat([terms.flip(0).cumsum(0).flip(0), terms.new_zeros(1)])
    return (E.square().sum() + tails).sqrt()


def middle(found: Iterable[Accuracy]) -> Accuracy:
    """The median of each figure."""
    return Accuracy(*map(median, zip(*found, strict=True)))


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
        return of(exact, decompose(exact.H.float(), method, kind, outer, inner, seed))

    def accuracy(
        self, step: int, method: Method, kind: str = DEFAULT, outer: int = TOP, inner: int = 710
    ) -> Accuracy:
        """The median over the seeds."""
        return middle(self.sketched(step, method, kind, outer, inner, s)[0] for s in SEEDS)

    def through_files(self, method: Method, seed: int) -> tuple[Accuracy, Tensor]:
        """The same by the pipeline, from Hessian products to eigh.h5, at one step."""
        problem = load_problem(mnist_mini(self.root).problem)
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
            checkpoint = Path(folder, f"checkpoint_{STEP}.pt")
            torch.save(network(problem, kept(STEP)["parameters"]).state_dict(), checkpoint)
            config = mnist_mini(
                self.root, f"run_dir={folder}/run", f"training.checkpoints={checkpoint}",
                f"training.record_steps=[{STEP}]", f"sketch.recovery={method.recovery}",
                f"sketch.rounds={method.rounds}", f"sketch.seed={seed}",
                "hessian.strategy=batched",
            )  # fmt: skip
            assert not complete(config)
            return of(self.exact(STEP), load(config.run_dir)[STEP, "test"])


def of(exact: Exact, pairs: Any) -> tuple[Accuracy, Tensor]:
    """The accuracy of eigenpairs, and the eigenvalues."""
    values, W = pairs.eigenvalues, pairs.eigenvectors[:]
    return compare(exact, values, W, pairs.residual), values


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
        draw("accuracy", *panels(bench))
        yield from synthetic()
        yield from coverage(bench)
    yield "**Targets**"


def by_files(bench: Bench, seeds: Sequence[int]) -> Iterator[str | Figure]:
    """In core and through files: residual and eigenvalues, of the same seeds."""
    rows = []
    for method, target in TARGETS.items():
        core = [bench.sketched(STEP, method, DEFAULT, TOP, 710, seed) for seed in seeds]
        files = [bench.through_files(method, seed) for seed in seeds]
        pairs = list(zip(core, files, strict=True))
        apart = max(float(((g - f).abs() / f.abs()).max()) for (_, f), (_, g) in pairs)
        in_core, filed = (median(a.residual for a, _ in found) for found in (core, files))
        rows.append([method, f"{in_core:.4f}", f"{filed:.4f}", f"{apart:.1e}"])
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
        found = map(format, bench.accuracy(step, method), (".3f", ".1e", ".3f", ".3f", ".3f"))
        rows.append([step, method, *found])
    heads = ("step", "", *NAMES, "overlap, k/2", "overlap, k", "estimate / true")
    yield table(heads, rows, "mnist_mini, 355 eigenpairs of 710 matvecs")
    for name, part in NAMES.items():

        def cell(method: Method, k: int, s: int, part: Part = part) -> str:
            able = possible(method, k, s)
            return part(bench.accuracy(STEP, method, DEFAULT, k, s)) if able else "-"

        rows = [[method, *(cell(method, *budget) for budget in BUDGETS)] for method in METHODS]
        heads = ("", *(f"{k} of {s}" for k, s in BUDGETS))
        yield table(heads, rows, f"mnist_mini, step {STEP}, by budget: {name}")
    rows = []
    for method in METHODS:
        residuals = (bench.accuracy(STEP, method, kind).residual for kind in KINDS)
        rows.append([method, *(f"{residual:.3f}" for residual in residuals)])
    title = f"mnist_mini, step {STEP}, 355 of 710, by sketch kind: residual / best"
    yield table(("", *KINDS), rows, title)


def possible(method: Method, outer: int, inner: int) -> bool:
    """Whether a method can do with so few matvecs."""
    return method.recovery != "hmt" or 2 * outer <= inner


def families(n: int, rank: int) -> dict[str, Tensor]:
    """The matrices of TYUC 2019, section 7.3.1; the decaying ones with alternating signs."""
    decays = {
        f"polynomial decay, p = {p}": synthmat.polynomial_decay(n, rank, p) for p in (0.5, 1, 2)
    } | {
        f"exponential decay, q = {q}": synthmat.exponential_decay(n, rank, q)
        for q in (0.01, 0.1, 0.5)
    }
    return {
        f"low rank + noise, ξ = {noise:g}": synthmat.lowrank_noise((n, n), rank, noise, 0, sym=True)
        for noise in (1e-4, 1e-2, 1e-1)
    } | {name: synthmat.symmetric(decay, 0, "alternate")[0] for name, decay in decays.items()}


def synthetic() -> Iterator[str]:
    """The synthetic matrices: residual over the best one, and top ten."""
    found: dict[str, list[Accuracy]] = {}
    for name, H in families(1000, 10).items():
        say(name)
        exact = Exact(H, *eigh(H))
        found[name] = [
            middle(of(exact, decompose(H, method, DEFAULT, 20, 40, seed))[0] for seed in SEEDS)
            for method in METHODS
        ]
    sizes = (", N = 1000, rank 10, 20 of 40", "")
    for (title, part), size in zip(NAMES.items(), sizes, strict=True):
        rows = [[name, *map(part, accuracies)] for name, accuracies in found.items()]
        yield table(("", *METHODS), rows, f"Synthetic{size}: {title}")


Draw = Callable[[int], tuple[Tensor, Tensor, Tensor]]  # by seed: values, estimates, true residuals


def coverage(bench: Bench, draws: int = 400) -> Iterator[str | Figure]:
    """How often the interval of the a-posteriori estimate holds the true residuals."""
    n, k = 300, 20
    ones_only = torch.arange(n) <= k
    worst_case, _ = synthmat.symmetric(ones_only.double(), 0, "alternate")
    matrices = families(n, 5) | {"residual of rank one, the worst case": worst_case}
    cases: dict[str, Draw] = {name: partial(_sketch, H, k) for name, H in matrices.items()}
    cases[f"mnist_mini, step {STEP}, 355 of 710"] = _fixed_sketch(bench.exact(STEP).H)
    rows, least = [], 1.0
    for name, of_seed in cases.items():
        say(f"coverage: {name}")
        values, estimates, true = zip(*map(of_seed, range(draws)), strict=True)
        shares = []
        for confidence in (0.95, 0.5):
            held = []
            for value, estimate, residual in zip(values, estimates, true, strict=True):
                lower, upper = interval(value, estimate, PROBES, confidence=confidence)
                held.append((lower <= residual) & (residual <= upper))
            inside = torch.stack(held).double()
            shares += [float(inside[:, -1].mean()), float(inside.prod(dim=1).mean())]
        least = min(least, *shares[:2])
        error = ["-", "-"]
        if true[0][-1] > 1e-7 * true[0][0]:  # else it is not told from zero
            ratios = torch.stack(estimates)[:, -1] / torch.stack(true)[:, -1]
            spread = float((ratios - 1).square().mean().sqrt())
            error = [f"{float(ratios.square().mean()):.3f}", f"{spread:.1%}"]
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


def _fixed_sketch(H: Tensor) -> Draw:
    """The same of one sketch of a large matrix, with probes of their own."""
    single = H.float()
    r = decompose(single, TWO, DEFAULT, TOP, 710, 0)
    values, W = r.eigenvalues, r.eigenvectors.double()
    true = true_residuals(H, values, W)

    def of_seed(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        Z = torch.randn(len(H), PROBES, generator=torch.Generator().manual_seed(seed))
        HZ = (single @ Z).double()
        return values, residuals(values, W.T @ Z.double(), W.T @ HZ, HZ.square().sum(dim=0)), true

    return of_seed


def panels(bench: Bench) -> Iterator[tuple[Curves, dict[str, Any]]]:
    """Residual and top ten against the matvecs, and the ratio of eigenvalues by index."""
    exact = bench.exact(STEP).eigenvalues[:TOP].abs()
    residual, top, ratio = Curves(), Curves(), Curves()
    for method, look in METHODS.items():
        able = [s for k, s in BUDGETS if k == TOP and possible(method, TOP, s)]
        found = [bench.accuracy(STEP, method, DEFAULT, TOP, s) for s in able]
        values = bench.sketched(STEP, method, DEFAULT, TOP, 710, SEEDS[0])[1].abs()
        label = str(method).replace("`", "")
        residual[label] = look, able, [a.residual for a in found]
        top[label] = look, able, [a.top for a in found]
        ratio[label] = look, range(1, TOP + 1), (values / exact).tolist()
    title = f"Residual over the best of rank {TOP}"
    yield residual, {"title": title, "xlabel": "matvecs", "ylabel": "ratio"}
    axes = {"xlabel": "matvecs", "ylabel": "relative", "yscale": "log"}
    yield top, axes | {"title": "Largest error of the top ten"}
    axes = {"xlabel": "index", "ylabel": "|sketched| / |exact|"}
    yield ratio, axes | {"title": "Eigenvalues, of 710 matvecs"}
