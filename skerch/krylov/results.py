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
