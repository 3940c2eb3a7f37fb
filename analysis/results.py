"""The results for one Hessian in plain numbers, as overlap.json, tables and figures have them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

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
    best: Sequence[float] = ()  # (G,) the largest overlap that any mask of k parameters has
    others: Sequence[Sequence[float]] = ()  # (M, G) with other masks
    other_masks: Sequence[str] = ()  # (M,) gradient, layers, and the names of given ones
    other_sizes: Sequence[int | None] = ()  # (M,) parameters, where they are the same for every k

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
    def other_chance(self) -> list[list[float]]:
        """The mean over random masks in the place of `others`, (M, G)."""
        return [
            [(k if size is None else max(k, size)) / self.parameters for k in self.grid]
            for size in self.other_sizes
        ]

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
class KroneckerResults:
    """A Kronecker-factored Fisher matrix: its layers, and how near it is, by random vectors v.

    They are signs in the places of parameters that are in layers, and 0 elsewhere. The
    approximation F̂ is of the blocks F_l of layers, the diagonal of F: what is between layers is an
    error of every method.
    """

    parameters: int  # N
    layers: Sequence[tuple[str, int, int, int, float, float, float, float | None]]
    # each name, groups, outputs, inputs, trace, mean and largest eigenvalue, condition
    uncovered: Mapping[str, str]  # parameters that are in no layer, and why
    trace: float  # of the approximation, of all layers
    traces: Sequence[float]  # (m,) Σ_l vᵀ F_l v, whose mean is the trace of F there
    layer_errors: Sequence[Sequence[float]]  # (layers, m) ‖(F̂_l - F_l) v‖ / ‖F_l v‖
    errors: Sequence[float]  # (m,) the same of all blocks at once
    whole_errors: Sequence[float]  # (m,) ‖(F̂ - F) v‖ / ‖F v‖ in the places of these parameters
    changes: Sequence[float]  # (layers,) of nearest: of ‖S ⊗ A‖ in its last pass, over itself
    against: str = ""  # whose eigenpairs the rest is of, as in `analysis.approximation`
    overlap: Sequence[float] = ()  # (k,)
    overlap_error: Sequence[float | None] = ()  # (k,) None where the gap is not resolved
    baseline: Sequence[float] = ()  # (k,)
    eigenvalues: Sequence[float] = ()  # (K,) K ≥ k
    quotients: Sequence[float] = ()  # (K,)
    pair_residual: Sequence[float] = ()  # (K,)
    residual: Sequence[Any] = ()  # (2,) the error None where none is known

    @property
    def covered(self) -> int:
        """How many parameters are in layers."""
        return sum(math.prod(layer[1:4]) for layer in self.layers)

    @property
    def error(self) -> Estimate:
        """The mean error of products with the blocks."""
        return _mean(self.errors)

    @property
    def whole_error(self) -> Estimate:
        """The mean error of products with F, what is between layers counted."""
        return _mean(self.whole_errors)

    @property
    def each_error(self) -> list[Estimate]:
        """The mean error of products with each layer's block."""
        return [_mean(errors) for errors in self.layer_errors]

    @property
    def last_known(self) -> int:
        """The largest k at which the overlap's error is known; all of them where none is."""
        known = [k for k, error in enumerate(self.overlap_error, 1) if error is not None]
        return max(known, default=len(self.overlap))

    def captured(self, k: int) -> Estimate:
        """The overlap at k, with an infinite error where the gap is not resolved."""
        return _estimate(self.overlap[k - 1], self.overlap_error[k - 1])

    @property
    def captured_residual(self) -> Estimate:
        """The residual, ‖(F̂ - H) W‖_F / ‖Λ‖_F."""
        return _estimate(*self.residual)

    @property
    def exact_trace(self) -> Estimate:
        """The trace of the Fisher matrix, of all layers."""
        return _mean(self.traces)


def _estimate(value: float, error: float | None) -> Estimate:
    """A number whose error is infinite where it is not known."""
    return Estimate(value, math.inf if error is None else error)


def _mean(samples: Sequence[float]) -> Estimate:
    """The mean with its error, which is Student's."""
    m = len(samples)
    return Estimate(fmean(samples), float(stdtrit(m - 1, 0.975)) * stdev(samples) / math.sqrt(m))


@dataclass(frozen=True)
class ExactResults:
    """Eigenvalues, residual and overlap of one Hessian by its exact eigendecomposition."""

    eigenvalues: Sequence[float]  # (N,) by decreasing magnitude
    residual: Sequence[float]  # (N + 1,) the least ‖H - H_r‖_F at each rank
    overlap: Sequence[float]  # (k,)


@dataclass(frozen=True)
class StabilisationResults:
    """What the top eigenspaces and the magnitude masks of a training's steps have in common.

    All as in `skerch.analysis.stabilisation`, at each of `ks`.
    """

    parameters: int  # N
    hessians: Sequence[tuple[int, str]]  # (H,) step and split of each
    steps: Sequence[int]  # (T,) of the masks
    ks: Sequence[int]  # (n,)
    pairs: int  # eigenpairs that each Hessian has; where they are many, ks are of the first of them
    eigenspaces: Sequence[Sequence[Sequence[float]]]  # (n, H, H) overlaps
    eigenspace_errors: Sequence[Sequence[Sequence[float | None]]]  # (n, H, H) None where not known
    masks: Sequence[Sequence[Sequence[float]]]  # (n, T, T) IoU

    @property
    def chance(self) -> list[float]:
        """The mean overlap of random eigenspaces, k / N, at each of `ks`."""
        return [k / self.parameters for k in self.ks]

    @property
    def mask_chance(self) -> list[float]:
        """The IoU of two masks that have as much in common as random ones in the mean.

        The mean IoU of random masks is somewhat larger, where k² / N is small.
        """
        return [chance / (2 - chance) for chance in self.chance]
