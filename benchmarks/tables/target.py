"""Rounds until a residual is reached: what was asked for, what is true, and the products it took.

The spectra are of 1000 x 1000 matrices with Haar-distributed eigenvectors, in single precision; the
probes, 30 products more, are not counted. "Needed" are the fewest products, in rounds as large,
that leave no more than what was asked for, which only the exact matrix tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from torch import Tensor

from benchmarks.exact import Exact, eigh, load_exact
from benchmarks.harness import Benchmark, Figure, Options, table
from benchmarks.tables.rounds import STEP, operator
from skerch import seigh, synthmat
from skerch.decompositions.recoveries import default_inner, default_rounds

BENCHMARK = Benchmark("docs/accuracy.md", make="accuracy")
N, KS, SEEDS = 1000, (20, 100), 10
ASKED = (1.12, 1.05, 1.02)
HEADER = ("spectrum", "k", "asked", "reached: median", "worst", "products: median", "most",
          "needed: median")  # fmt: skip


def measure(options: Options) -> Iterator[str | Figure]:
    """Rows by spectrum, number of pairs and target."""
    rows: list[list[object]] = []
    true = []
    for name, exact, op in matrices(options):
        for k in KS:
            needed = {seed: curve(op, exact, k, seed) for seed in range(SEEDS)}
            for asked in ASKED:
                found = [reach(op, exact, k, asked, seed) for seed in range(SEEDS)]
                ratios, spent = zip(*found, strict=True)
                least = [min(m for m, r in needed[s] if r <= asked) for s in range(SEEDS)]
                true += [ratio <= asked for ratio in ratios]
                figures = (f"{median(ratios):.4f}", f"{max(ratios):.4f}")
                counts = (f"{median(spent):.0f}", max(spent), f"{median(least):.0f}")
                rows.append([name, k, asked, *figures, *counts])
    yield table(HEADER, rows, f"Rounds until a residual is reached, {SEEDS} draws each")
    yield Figure("share of draws that reached what they say", sum(true) / len(true), "≥", 0.98)


def matrices(options: Options) -> Iterator[tuple[str, Exact, Any]]:
    """Each matrix in double precision with its eigenvalues, and as it is multiplied."""
    noise = synthmat.lowrank_noise((N, N), 10, 1e-1, seed=0, sym=True)
    spectra = {
        "polynomial decay 1": synthmat.polynomial_decay(N, 1, 1),
        "exponential decay 0.02": synthmat.exponential_decay(N, 1, 0.02),
    }
    for name, spectrum in spectra.items():
        H, values = synthmat.symmetric(spectrum, seed=0, signs="random")
        yield name, Exact(H, values, None), H.float()
    yield "rank 10 and noise 0.1", Exact(noise, eigh(noise)[0], None), noise.float()
    yield f"mnist_mini, step {STEP}", load_exact(options.root, STEP), operator(options)


def over_best(exact: Exact, values: Tensor, W: Tensor) -> float:
    """‖H - H_k‖_F over the best of its rank, from ‖H - H_k‖² = ‖H‖² - Σ λ_i (2 w_iᵀH w_i - λ_i)."""
    W, energies = W.double(), exact.eigenvalues.square()
    captured = values * (2 * (W * (exact.H @ W)).sum(dim=0) - values)
    return float(((energies.sum() - captured.sum()) / energies[len(values) :].sum()).sqrt())


def reach(op: Any, exact: Exact, k: int, asked: float, seed: int) -> tuple[float, int]:
    """What the target leaves, and the products that it took."""
    found = seigh(op, outer=k, target={"residual": asked}, seed=seed)
    return over_best(exact, found.eigenvalues, found.eigenvectors), found.products


def curve(op: Any, exact: Exact, k: int, seed: int) -> list[tuple[int, float]]:
    """Products, and what they leave, from k products on in rounds as large as the target's."""
    inner = default_inner(k, bound=True)
    columns = -(-inner // default_rounds("nystrom", k, inner, bound=True))
    result = []
    for rounds in range(-(-k // columns), -(-inner // columns)):
        found = seigh(op, outer=k, inner=rounds * columns, rounds=rounds, seed=seed)
        result.append((rounds * columns, over_best(exact, found.eigenvalues, found.eigenvectors)))
        if result[-1][1] <= min(ASKED):
            break
    return result
