"""The density of a spectrum by stochastic Lanczos quadrature.

From a random unit vector v, m Lanczos steps give the Gauss quadrature of the measure
Σ (vᵀu_i)² δ(λ - λ_i), whose mean over v is the density of the spectrum (Lin, Saad and Yang,
"Approximating spectral densities of large matrices", SIAM Review 58(1), 2016; Ubaru, Chen and Saad,
"Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J. Matrix Anal. Appl. 38(4),
2017). The recurrence is not reorthogonalised: a node may then appear in several copies, which share
its weight (Greenbaum, Linear Algebra Appl. 113, 1989), and a run needs three vectors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.stats import t as students_t
from torch import Tensor

from skerch.errors import SkerchError
from skerch.krylov.backend import LinAlgBackend
from skerch.krylov.exchangeable import blocks
from skerch.krylov.lanczos import recurrence
from skerch.krylov.operand import Operand
from skerch.krylov.results import SpectralDensityResult

MOST_OBLIQUE = 1e-2  # entries of VᵀV - I, at most
WIDTHS = 5  # of the Gaussian beyond the last node, so that nothing is cut off


def spectral_density(
    operator: Any,
    *,
    num_runs: int = 10,
    lanczos_steps: int = 80,
    num_grid_points: int = 10000,
    sigma: float | None = None,
    grid_padding: float = 0.1,
    seed: int | None = None,
    deflate: Any = None,
    block_size: int | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> SpectralDensityResult:
    """The density of a symmetric operator's eigenvalues, from num_runs lanczos_steps products.

    num_runs: random starts, independent of each other and of those of any other seed.
    lanczos_steps: of each run, so that it has as many nodes.
    sigma: of the Gaussian that smooths; by default the spectrum's width / lanczos_steps.
    grid_padding: by how much of its width the grid exceeds the spectrum, or five sigma if more.
    seed: of the starts; None takes a fresh one.
    deflate: eigenpairs that are known, with orthonormal eigenvectors V, as for
        `skerch.krylov.operand.Operand`. They are exact atoms, and runs see (I - VVᵀ)A(I - VVᵀ). If
        they are not exact, eigenvalues move by no more than ‖A V - V diag(λ)‖₂.
    block_size: runs that go through the operator together; by default as many as 256 MiB hold, 64
        at most.

    Values are means of each cell of the grid, so that they integrate to 1 however small sigma is.
    Raises ShapeError for an operator that is not square, SkerchError for one that is not symmetric
    or not declared so, for sizes that do not fit, and for vectors of `deflate` that are not
    orthonormal.
    """
    A = Operand(operator, "spectral_density", backend, deflate=deflate, block_size=block_size)
    _check(num_runs, lanczos_steps, num_grid_points, sigma, A.size)
    _check_orthonormal(A)
    share = 1 - len(A.values) / A.size
    nodes = torch.full((num_runs, lanczos_steps), math.nan, dtype=torch.float64, device="cpu")
    weights = torch.zeros_like(nodes)
    seed = A.backend.seed(seed)

    def without_pairs(X: Tensor) -> Tensor:
        return torch.addmm(X, A.vectors, A.backend.inner(A.vectors, X).to(X), alpha=-1)

    def product(X: Tensor) -> Tensor:
        return without_pairs(A(X)) if len(A.values) else A(X)

    with A.frozen():
        for start, stop in blocks(0, num_runs, A.block_size) if share else ():
            V = without_pairs(A.randn(range(start, stop), seed, "estimate"))
            V = V / A.backend.dots(V, V).sqrt().to(V)
            alphas, betas = recurrence(A, V, lanczos_steps, product)
            for run in range(start, stop):
                theta, w = quadrature(alphas[run - start], betas[run - start])
                nodes[run, : len(theta)], weights[run, : len(w)] = theta, share * w
    seen = torch.cat([nodes[nodes.isfinite()], A.values])
    low, high = float(seen.min()), float(seen.max())
    width = max(high - low, 1e-6 * max(abs(low), abs(high))) or 1e-9
    sigma = sigma or width / lanczos_steps
    padding = max(grid_padding * width, WIDTHS * sigma)
    grid = torch.linspace(
        low - padding, high + padding, num_grid_points, dtype=torch.float64, device="cpu"
    )
    step = float(grid[1] - grid[0])
    edges = torch.cat([grid - step / 2, grid[-1:] + step / 2])
    known = _cumulative(edges, A.values, torch.full_like(A.values, 1 / A.size), sigma)
    runs = torch.stack(
        [_cumulative(edges, *run, sigma) for run in zip(nodes, weights, strict=True)]
    )
    mean, at_points = known + runs.mean(0), (runs[:, 1:] + runs[:, :-1]) / 2
    error = torch.full_like(grid, math.inf)
    if num_runs > 1:
        error = at_points.std(0) * float(students_t.ppf(0.975, num_runs - 1)) / num_runs**0.5
    return SpectralDensityResult(
        grid,
        mean.diff() / step,
        nodes,
        weights,
        sigma,
        A.values,
        (mean[1:] + mean[:-1]) / 2,
        error,
        A.products,
    )


def quadrature(alphas: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights, each (m,), of a recurrence that ends at the first β = 0."""
    ends = torch.nonzero(betas == 0)[:, 0].tolist()
    m = ends[0] + 1 if ends else len(alphas)
    beside = torch.diag(betas[: m - 1], 1)
    nodes, S = torch.linalg.eigh(torch.diag(alphas[:m]) + beside + beside.T)
    return nodes, S[0].square()


def _cumulative(edges: Tensor, nodes: Tensor, weights: Tensor, sigma: float) -> Tensor:
    """The weight below each edge of Gaussians about the nodes that are numbers."""
    there = nodes.isfinite()
    below: Tensor = torch.special.ndtr((edges[:, None] - nodes[there]) / sigma)
    return below @ weights[there]


def _check(
    num_runs: int, lanczos_steps: int, num_grid_points: int, sigma: float | None, size: int
) -> None:
    least = {"num_runs": (num_runs, 1), "lanczos_steps": (lanczos_steps, 1)}
    for name, (value, bound) in (least | {"num_grid_points": (num_grid_points, 2)}).items():
        if value < bound:
            raise SkerchError(f"{name} must be at least {bound}, not {value}.")
    if lanczos_steps > size:
        raise SkerchError(f"lanczos_steps={lanczos_steps} exceeds operator size {size}.")
    if sigma is not None and not sigma > 0:
        raise SkerchError(f"sigma={sigma} must be positive; None takes one that fits.")


def _check_orthonormal(A: Operand) -> None:
    off = A.backend.inner(A.vectors, A.vectors)
    off -= torch.eye(len(off), dtype=off.dtype, device="cpu")
    if len(off) and not float(worst := off.abs().max()) <= MOST_OBLIQUE:
        raise SkerchError(
            f"The eigenvectors of deflate are orthonormal but for {float(worst):.1g}, and atoms "
            "are of orthonormal ones; take those of lanczos or seigh, or torch.linalg.qr of yours."
        )
