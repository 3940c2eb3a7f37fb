"""The results for one Hessian in plain numbers, as overlap.json, tables and figures have them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

from skerch.estimate import Estimate, extremes


@dataclass(frozen=True)
class HessianResults:
    """Eigenvalues, residual and overlap of one Hessian, from k of its eigenpairs.

    Those from `grid` on have their defaults where an older version wrote the file.
    """

    parameters: int  # N
    eigenvalues: Sequence[float]  # (k,) by decreasing magnitude
    residual: Sequence[float]  # (k + 1,) estimated ‖H - H_r‖_F for r = 0 … k
    residual_bounds: Sequence[Sequence[float]]  # (2, k + 1) confidence interval of ‖H - H_r‖_F
    scree_bounds: Sequence[Sequence[float]]  # (2, k + 1) of the squared best residual over ‖H‖²
    overlap: Sequence[float]  # (k,) and the rest as in `skerch.analysis.overlap.OverlapResult`
    baseline: Sequence[float]  # (k,)
    deviation: Sequence[float]  # (k,)
    mask: Sequence[int]  # (k,)
    grid: Sequence[int] = ()  # (G,)
    quantiles: Sequence[Sequence[float]] = ((), ())  # (2, G)
    ties: Sequence[Sequence[int]] = ()  # (2, k)
    asymmetry: float = 0.0  # ‖M - Mᵀ‖ / ‖M‖ of the sketched matrix, which is symmetric …
    rounding: float = 1.0  # … up to this, for the dtype of its products
    eigenvalue_bound: Sequence[float] = ()  # (k,) how far each may be off, in 95 of 100
    trace: Sequence[float] = ()  # of all of the Hessian, and how far it may be off
    norm: Sequence[float] = ()  # ‖H‖_F, likewise
    overlap_error: Sequence[float | None] = ()  # (k,) None where the gap is not resolved
    modules: Sequence[tuple[str, int, float, float]] = ()  # each as an `analysis.modules` share

    def eigenvalue(self, index: int) -> str:
        """An eigenvalue with the digits that are known, five at most; four where none can tell."""
        value = self.eigenvalues[index]
        if not self.eigenvalue_bound or not value:
            return f"{value:.4g}"
        return Estimate(value, self.eigenvalue_bound[index]).digits

    @property
    def extremes(self) -> tuple[Estimate, Estimate] | None:
        """λ_max and λ_min, see `skerch.estimate.extremes`; None where bounds are not known."""
        known = len(self.eigenvalue_bound)
        return extremes(self.eigenvalues, self.eigenvalue_bound) if known else None

    @property
    def negative(self) -> int:
        """How many of the k eigenvalues are negative."""
        return sum(value < 0 for value in self.eigenvalues)

    @property
    def block_diagonal(self) -> float | None:
        """How much of ‖H_k‖_F² the diagonal blocks of modules hold; None in older files."""
        return sum(block for *_, block in self.modules) if self.modules else None

    @property
    def relative_residual(self) -> float:
        """‖H - H_k‖ / ‖H‖ in the Frobenius norm, as estimated."""
        return self.residual[-1] / self.residual[0]

    @property
    def last_overlap_error(self) -> float | None:
        """How far the overlap at k may be off; None where the k-th gap is not resolved."""
        return self.overlap_error[-1] if self.overlap_error else None

    @property
    def multiple(self) -> float:
        """The overlap at k as a multiple of k / N."""
        return self.overlap[-1] / self.baseline[-1]

    @property
    def distance(self) -> float | None:
        """The overlap at k less k / N, in standard deviations over random masks.

        None where all masks of k parameters have the same overlap, as for k = N.
        """
        deviation = self.deviation[-1]
        return (self.overlap[-1] - self.baseline[-1]) / deviation if deviation else None

    @property
    def tie(self) -> tuple[int, int] | None:
        """How many parameters of the mask's least magnitude are in the mask of k, and in all.

        None where all of them are in the mask. Otherwise their indices alone decide which are.
        """
        within, alike = (counts[-1] for counts in self.ties or ([0], [0]))
        return (within, alike) if within < alike else None


@dataclass(frozen=True)
class LanczosResults(HessianResults):
    """Eigenpairs by the Lanczos method, and their overlap; what needs probes is left empty."""

    which: str = "LM"  # of largest magnitude (LM), largest (LA) or smallest (SA), in that order
    pair_residual: Sequence[float] = ()  # (k,) ‖A w - λ w‖
    converged: Sequence[bool] = ()  # (k,)
    products: int = 0  # matvecs spent

    @property
    def extremes(self) -> tuple[Estimate, Estimate] | None:
        """λ_max and λ_min, where those largest in magnitude are known."""
        return super().extremes if self.which == "LM" else None


@dataclass(frozen=True)
class TraceResults:
    """The trace of one Hessian, and how far it may be off."""

    parameters: int  # N
    trace: Sequence[float]  # its estimate, and how far that may be off in 95 of 100
    stderr: float | None  # standard error of the estimate; None for a single sample
    samples: Sequence[float]  # (m,) whose mean is the estimate, but for a constant
    products: int  # matvecs spent
    deflated: int  # eigenpairs that took none of them

    @property
    def estimate(self) -> Estimate:
        """The trace with its error."""
        return Estimate(*self.trace)


@dataclass(frozen=True)
class DensityResults:
    """The distribution of one Hessian's eigenvalues."""

    parameters: int  # N
    grid: Sequence[float]  # (G,)
    density: Sequence[float]  # (G,) smoothed by Gaussians of width sigma, the atoms, too
    sigma: float
    nodes: Sequence[Sequence[float]]  # of the quadrature of each run
    weights: Sequence[Sequence[float]]  # their weights; a run's add up to 1 less those of the atoms
    atoms: Sequence[float]  # (k,) eigenvalues that are known, each of weight 1 / N
    products: int  # matvecs spent

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest that was seen: there are some below and above these."""
        seen = [*self.atoms, *(node for run in self.nodes for node in run)]
        return min(seen), max(seen)

    def share(self, low: float, high: float = math.inf) -> Estimate:
        """The share of the eigenvalues in (low, high], by the nodes and the atoms, not smoothed.

        Its error is Student's, of the runs' scatter, and at each bound the weight of the node next
        to it, the mean over runs: what a run has on one side of a point is known to that (the
        inequalities of Chebyshev, Markov and Stieltjes). Bounds are to lie where there are few.
        """
        known = sum(low < atom <= high for atom in self.atoms) / self.parameters
        shares = [
            known + sum(w for node, w in zip(*run, strict=True) if low < node <= high)
            for run in zip(self.nodes, self.weights, strict=True)
        ]
        runs = len(shares)
        error = stdtrit(runs - 1, 0.975) * stdev(shares) / math.sqrt(runs)
        return Estimate(fmean(shares), float(error) + self._beside(low) + self._beside(high))

    def _beside(self, bound: float) -> float:
        """The weight of the heavier one of the two nodes beside a bound, the mean over runs."""
        heavier = []
        for run in zip(self.nodes, self.weights, strict=True):
            pairs = sorted(zip(*run, strict=True))
            index = sum(node <= bound for node, _ in pairs)
            sides = pairs[:index][-1:], pairs[index:][:1]
            heavier.append(max(side[0][1] for side in sides) if all(sides) else 0.0)
        return fmean(heavier)


@dataclass(frozen=True)
class ExactResults:
    """Eigenvalues, residual and overlap of one Hessian by its exact eigendecomposition."""

    eigenvalues: Sequence[float]  # (N,) by decreasing magnitude
    residual: Sequence[float]  # (N + 1,) the least ‖H - H_r‖_F at each rank
    overlap: Sequence[float]  # (k,)
