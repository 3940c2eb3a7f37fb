"""skerch.ssvd beside SciPy's svds at as many products, on five spectra.

    python benchmarks/svd.py | python docs/insert.py docs/svd.md svd

Prints Markdown and exits 1 if a target is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median

import numpy as np
import scipy.sparse
import torch
from figures import table
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, svds

from skerch import ssvd, synthmat

SHAPE, OUTER, INNER, PROBES, SEEDS = (300, 200), 20, 40, 30, range(5)
TARGET = 1.2  # residual over best
Matrix = NDArray[np.float64]


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


def main() -> None:
    """The table."""
    rows, ratios, products = [], [], 0
    for name, A in matrices().items():
        exact = np.linalg.svd(A, compute_uv=False)
        best = float(np.linalg.norm(exact[OUTER:]) / np.linalg.norm(exact))
        found = [ours(A, seed) for seed in SEEDS]
        peer = [scipys(A, seed, tol=1) for seed in SEEDS]
        mine, estimate = (median(column) for column in zip(*found, strict=True))
        ratios.append(max(error for error, _ in found) / best)
        products = max(products, *(spent for _, spent in peer))
        its = median(error for error, _ in peer) / best
        exactly = median(spent for _, spent in (scipys(A, seed, tol=0) for seed in SEEDS))
        figures = f"{best:.4f}", f"{mine:.4f}", f"{mine / best:.3f}", 1, f"{its:.3f}", exactly
        rows.append([name, *figures, f"{estimate:.2f}"])
    heads = ["spectrum", "best", "ssvd", "over best", "zero", "svds over best"]
    heads += ["products of svds for all digits", "ssvd's estimate over true"]
    print(table(heads, rows))
    print(
        f"\nA of shape {SHAPE}, outer {OUTER}, medians over {len(SEEDS)} seeds. `ssvd` spends "
        f"{INNER} products by A, {INNER} by Aᵀ and {PROBES} on probes, `svds` at most {products}. "
        f"The worst seed of `ssvd` is {max(ratios):.3f} times the best; the target is {TARGET}."
    )
    sys.exit(max(ratios) > TARGET)


if __name__ == "__main__":
    main()
