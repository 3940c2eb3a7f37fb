"""skerch.ssvd beside SciPy's svds at as many products, on five spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, svds

from benchmarks.harness import Benchmark, Figure, Options, table
from skerch import ssvd, synthmat

BENCHMARK = Benchmark("docs/svd.md", make="accuracy")
SHAPE, OUTER, INNER, PROBES, SEEDS = (300, 200), 20, 40, 30, 5
TARGET = 1.2  # residual over best
HEADER = (
    "spectrum", "best", "ssvd", "over best", "zero", "svds over best",
    "products of svds for all digits", "ssvd's estimate over true",
)  # fmt: skip
Matrix = NDArray[np.float64]


def measure(options: Options) -> Iterator[str | Figure]:
    """A row a spectrum."""
    rows, worst, products, seeds = [], 0.0, 0, range(SEEDS)
    for name, A in matrices().items():
        exact = np.linalg.svd(A, compute_uv=False)
        best = float(np.linalg.norm(exact[OUTER:]) / np.linalg.norm(exact))
        found = [ours(A, seed) for seed in seeds]
        peer = [scipys(A, seed, tol=1) for seed in seeds]
        mine, estimate = (median(column) for column in zip(*found, strict=True))
        worst = max(worst, *(error / best for error, _ in found))
        products = max(products, *(spent for _, spent in peer))
        its = median(error for error, _ in peer) / best
        exactly = median(spent for _, spent in (scipys(A, seed, tol=0) for seed in seeds))
        figures = f"{best:.4f}", f"{mine:.4f}", f"{mine / best:.3f}", 1, f"{its:.3f}", exactly
        rows.append([name, *figures, f"{estimate:.2f}"])
    yield table(HEADER, rows)
    yield (
        f"A of shape {SHAPE}, outer {OUTER}, medians over {len(seeds)} seeds. `ssvd` spends "
        f"{INNER} products by A, {INNER} by Aᵀ and {PROBES} on probes, `svds` at most {products}."
    )
    yield Figure("the worst seed of `ssvd`, residual over best", worst, "≤", TARGET)


def matrices() -> dict[str, Matrix]:
    """The matrices by the names of their spectra."""
    i = torch.arange(1, min(SHAPE) + 1, dtype=torch.float64)
    spectra = {
        "σ_i = 1/i": 1 / i,
        "σ_i = 10^(-0.05 i)": 10 ** (-0.05 * i),
        f"{OUTER} ones, then 0.1/i": torch.where(i <= OUTER, 1.0, 0.1 / i),
    }
    found = {name: synthmat.general(spectrum, SHAPE, 0)[0] for name, spectrum in spectra.items()}
    found["rank 10 and noise"] = synthmat.lowrank_noise(SHAPE, 10, 0.1, seed=0)
    flat = scipy.sparse.random(*SHAPE, 0.05, rng=0).toarray()
    return {"sparse random, 5 % nonzero": flat} | {k: A.numpy() for k, A in found.items()}


def residual(A: Matrix, U: Matrix, values: Matrix, Vh: Matrix) -> float:
    """‖A - U diag(values) Vᵀ‖ / ‖A‖."""
    return float(np.linalg.norm(A - (U * values) @ Vh) / np.linalg.norm(A))


def ours(A: Matrix, seed: int) -> tuple[float, float]:
    """The residual, and the estimated over the true one."""
    found = ssvd(A, outer=OUTER, inner=INNER, probes=PROBES, seed=seed)
    arrays = found.left_vectors, found.singular_values, found.right_vectors.T
    true = residual(A, *(array.numpy() for array in arrays))
    return true, float(found.residual[-1]) / np.linalg.norm(A) / true


def scipys(A: Matrix, seed: int, tol: float) -> tuple[float, int]:
    """The residual, and the products spent; with tol=1 ARPACK stops at a basis of INNER vectors."""
    spent = 0

    def counted(B: Matrix) -> Callable[[Matrix], Matrix]:
        def multiply(X: Matrix) -> Matrix:
            nonlocal spent
            spent += 1 if X.ndim == 1 else X.shape[1]
            return B @ X

        return multiply

    by_A, by_adjoint = counted(A), counted(A.T)
    operator = LinearOperator(A.shape, by_A, by_adjoint, by_A, A.dtype, by_adjoint)
    return residual(A, *svds(operator, OUTER, ncv=INNER, tol=tol, rng=seed)), spent
