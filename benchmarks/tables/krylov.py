"""Lanczos beside SciPy's eigsh, trace estimators at equal products, and memory.

--quick: fewer seeds and products, and no peak memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy.fft import dct, idct
from scipy.sparse.linalg import eigsh
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.exact import kept
from benchmarks.harness import Benchmark, Figure, Options, apart, say, table
from benchmarks.rates import machine, peak_bytes
from skerch import HessianOperator, LinearOperator, aslinearoperator, to_scipy
from skerch.curvature import supervised_loss
from skerch.jobs.problems import build_model, load_data, load_problem
from skerch.krylov import hutch_plus_plus, lanczos, trace
from skerch.linops import DiagonalOperator

BENCHMARK = Benchmark("docs/performance.md", make="bench", quick=True)
PAIRS, TOL, BLOCKS, SEEDS = 10, 1e-4, (1, 4, 16), 5
METHODS, PRODUCTS, DRAWS = ("hutchinson", "hutch++", "xtrace"), (30, 99), 200
SIZE, BASIS, SKETCH, WANTED = 4_000_000, 21, 20, 5  # of vectors whose memory is measured
SPARE = 12  # vectors beside basis or sketch and result


def measure(options: Options) -> Iterator[str | Figure]:
    """Products and seconds for ten pairs, errors of the trace, and vectors in memory."""
    yield machine()
    yield from pairs(2 if options.quick else SEEDS)
    yield from traces(PRODUCTS[:1] if options.quick else PRODUCTS)
    if not options.quick:
        yield from memory()


def pairs(seeds: int) -> Iterator[str | Figure]:
    """A row an operator."""
    rows, over = [], 0.0
    for name, op in operators().items():
        say(f"{name}: {PAIRS} pairs")
        with op.frozen():
            peer = [eigshs(op, seed) for seed in range(seeds)]
            ours = [[lanczoss(op, block, seed) for seed in range(seeds)] for block in BLOCKS]
        over = max(over, mean(p for p, _ in ours[0]) / mean(p for p, _ in peer))
        cells = (
            f"{mean(p for p, _ in runs):.1f} in {median(s for _, s in runs):.2f} s"
            for runs in (peer, *ours)
        )
        rows.append([f"{name}, N = {op.shape[0]:,}", *cells])
    header = ("products in seconds", "eigsh", *(f"lanczos, blocks of {b}" for b in BLOCKS))
    yield table(header, rows)
    yield (
        f"The {PAIRS} pairs of largest magnitude to ‖A v - λ v‖ ≤ {TOL:g} |λ|; mean products and "
        f"median seconds over {seeds} seeds."
    )
    yield Figure("products of `lanczos`, one at a time, over `eigsh`'s", over, "≤", 1)


def operators() -> dict[str, LinearOperator]:
    """Two spectra of mnist_mini, and the Hessian of a small network on real digits."""
    found: dict[str, LinearOperator] = {
        f"spectrum of mnist_mini, step {step}": DiagonalOperator(kept(step)["eigenvalues"])
        for step in (200, 1000)
    }
    torch.manual_seed(0)
    problem = load_problem({"name": "digits_mlp"})
    data = load_data(problem, "test")
    X, y = zip(*(data[i] for i in range(200)), strict=True)
    batch = torch.stack(X), torch.tensor([int(label) for label in y])
    loss = supervised_loss(cross_entropy)
    network = build_model(problem).eval()
    found["Hessian of digits_mlp"] = HessianOperator(network, [batch], loss, check=False)
    return found


def eigshs(op: LinearOperator, seed: int) -> tuple[int, float]:
    """Products and seconds of SciPy."""
    counted = Counted(op)
    v0 = np.random.default_rng(seed).standard_normal(op.shape[0])
    start = perf_counter()
    eigsh(to_scipy(counted), k=PAIRS, tol=TOL, v0=v0)
    return counted.products, perf_counter() - start


def lanczoss(op: LinearOperator, block: int, seed: int) -> tuple[int, float]:
    """Products and seconds of ours."""
    start = perf_counter()
    found = lanczos(op, k=PAIRS, tol=TOL, block_size=block, seed=seed)
    assert bool(found.converged.all())
    return found.products, perf_counter() - start


class Counted(LinearOperator):
    """An operator that counts its products."""

    self_adjoint = True

    def __init__(self, op: LinearOperator):
        super().__init__(op.shape, op.dtype, op.device)
        self.op, self.products = op, 0

    def _matmul(self, X: Tensor) -> Tensor:
        self.products += X.shape[1]
        return self.op @ X


def traces(counts: tuple[int, ...]) -> Iterator[str | Figure]:
    """A row a number of products."""
    values = kept(1000)["eigenvalues"]
    op, true = mixed(values), float(values.sum())
    rows, ratio, held = [], 0.0, 1.0
    for products in counts:
        say(f"traces from {products} products")
        errors, cells = {}, []
        for method in METHODS:
            found = [trace(op, num_matvecs=products, method=method, seed=s) for s in range(DRAWS)]
            off = [abs(each.estimate - true) for each in found]
            errors[method] = math.sqrt(mean(x**2 for x in off))
            share = mean(x <= r.interval.error for x, r in zip(off, found, strict=True))
            held = min(held, share)
            cells.append(f"{errors[method] / true:.2%}, {share:.0%}")
        ratio = max(ratio, errors["xtrace"] / errors["hutch++"])
        rows.append([products, *cells])
    yield table(("products", *METHODS), rows)
    yield (
        f"The trace of mnist_mini's spectrum at step 1000: relative RMS error over {DRAWS} seeds, "
        "and how often the interval held."
    )
    yield Figure("error of XTrace over that of Hutch++", ratio, "≤", 0.9)
    yield Figure("intervals of 95 in 100 that held", held, "≥", 0.92)


def mixed(values: Tensor) -> LinearOperator:
    """A matrix with these eigenvalues and eigenvectors unlike unit vectors."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], len(values))[:, None]
    scale: Any = values.numpy()[:, None]

    def product(X: Tensor) -> Tensor:
        Z = dct(signs * X.numpy(), norm="ortho", axis=0)
        return torch.from_numpy(signs * idct(scale * Z, norm="ortho", axis=0))

    shape = (len(values), len(values))
    return aslinearoperator(product, shape=shape, dtype=values.dtype, self_adjoint=True)


def memory() -> Iterator[str | Figure]:
    """A row an algorithm, each in a process of its own."""
    rows, bounds = [], {"lanczos": BASIS + WANTED, "hutch_plus_plus": SKETCH}
    for name, needed in bounds.items():
        say(f"memory of {name}")
        vectors = apart(vectors_of, name)
        rows.append([f"`{name}`", needed, f"{vectors:.1f}"])
        yield Figure(f"vectors of `{name}` beyond {needed}", vectors - needed, "≤", SPARE)
    yield table(("peak memory in vectors", "basis or sketch, and result", "measured"), rows)
    yield (
        f"N = {SIZE:,} in float32: {WANTED} pairs from a basis of {BASIS}, and a trace from a "
        f"sketch of {SKETCH}. Further vectors are those of a product and its orthogonalisation."
    )


def vectors_of(name: str) -> float:
    """By how many vectors an algorithm raises the peak memory of this process."""
    how: dict[str, Any] = {"num_matvecs": 3 * SKETCH, "block_size": 1}
    work: Callable[..., object] = hutch_plus_plus
    if name == "lanczos":
        how, work = {"k": WANTED, "basis_size": BASIS, "max_iter": 25, "tol": 0.0}, lanczos
    work(
        DiagonalOperator(torch.ones(50)), **(how | {"block_size": 1, "seed": 0})
    )  # loads libraries
    diagonal = DiagonalOperator(torch.linspace(0.5, 1.5, SIZE))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
    before = peak_bytes()
    work(diagonal, seed=0, **how)
    return (peak_bytes() - before) / (4 * SIZE)
