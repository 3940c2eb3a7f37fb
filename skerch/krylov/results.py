"""What the algorithms return. Fields are those of hessian-eigenthings 1.0, and a few more."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from skerch.estimate import Estimate


@dataclass(frozen=True)
class EigenResult:
    """Eigenpairs of a symmetric operator; vectors are rows, as in hessian-eigenthings."""

    eigenvalues: Tensor  # (k,)
    eigenvectors: Tensor  # (k, n), orthonormal rows
    residuals: Tensor  # (k,) ‖A v - λ v‖
    iterations: int
    converged: Tensor  # (k,) bool
    products: int  # matvecs spent


@dataclass(frozen=True)
class CGResult:
    """Solutions of (A + δ I) X = B for B (n, q), or (n,), where the fields have no axis of q."""

    solution: Tensor  # X (n, q)
    residuals: Tensor  # (q,) ‖b - (A + δ I) x‖ / ‖b‖, by a product with x; float64, on the CPU
    iterations: int  # products of blocks
    converged: Tensor  # (q,) bool
    products: int  # matvecs spent
    history: Tensor  # (iterations, q) residuals after each iteration, by the recurrence or a check


@dataclass(frozen=True)
class DampingResult:
    """How far approximate inverses at several dampings are from solutions; all on the CPU.

    q held-out gradients; see `skerch.krylov.choose_damping` for what errors are of.
    """

    damping: float  # the one of least mean error
    dampings: Tensor  # (D,) ascending
    errors: Tensor  # (D, q) relative squares, in the norm of A + δ₀ I
    residuals: Tensor  # (D, q) ‖g - (A + δ₀ I) x‖ / ‖g‖
    mean: Tensor  # (D,) of errors over gradients
    stderr: Tensor  # (D,) of that mean; not finite for one gradient
    is_at_end: bool  # of the dampings, so that one beyond may be better
    products: int  # matvecs spent


@dataclass(frozen=True)
class LanczosTridiag:
    """A Vᵀ = Vᵀ T + β r eᵀ for orthonormal rows V and a tridiagonal T of m steps."""

    alphas: Tensor  # (m,) the diagonal of T
    betas: Tensor  # (m - 1,) beside it
    basis: list[Tensor]  # the m rows of V, each (n,)
    last_beta: float  # ‖A v_m - …‖, what the last product has beyond V
    iterations: int  # m


@dataclass(frozen=True)
class TraceResult:
    """An estimate of a trace."""

    estimate: float
    stderr: float  # standard error of the estimate, not finite for a single sample
    samples: Tensor  # (m,) whose mean is the estimate but for a constant
    interval: Estimate  # where the trace lies, in 95 of 100
    products: int  # matvecs spent


@dataclass(frozen=True)
class DiagonalResult:
    """An estimate for each entry of a vector, such as the diagonal."""

    estimate: Tensor  # (n,)
    stderr: Tensor  # (n,) standard error of each entry
    products: int  # matvecs spent


@dataclass(frozen=True)
class SpectralDensityResult:
    """The density of the eigenvalues, smoothed by a Gaussian, and the quadrature it stems from.

    All tensors are float64, on the CPU.
    """

    grid: Tensor  # (G,) points at equal distances
    density: Tensor  # (G,) mean density about each, which integrates to 1
    raw_eigenvalues: Tensor  # (runs, m) nodes of each run, NaN where it ended early
    raw_weights: Tensor  # (runs, m) their weights, which sum to 1 - k / n for k atoms
    sigma: float  # of the Gaussian
    atoms: Tensor  # (k,) the eigenvalues by which the operator was deflated, each of weight 1 / n
    cumulative: Tensor  # (G,) share of the eigenvalues up to each point
    cumulative_error: Tensor  # (G,) within which it holds in 95 of 100, by the scatter of the runs
    products: int  # matvecs spent
