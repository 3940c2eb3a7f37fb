"""Indefinite Nyström with a filter, in one round of measurements or in several.

For test vectors X and Y = H X, the Nyström approximation is H ≈ Y M⁺ Yᵀ with M = XᵀY. For an
indefinite H, M may have small eigenvalues that have nothing to do with H, so that its inverse needs
to be regularised (Park and Nakatsukasa, "Randomized low-rank approximation for symmetric
indefinite matrices", 2023). Here, with M = W diag(m) Wᵀ,

    H ≈ Y W diag(f(m)) Wᵀ Yᵀ,    f(m) = m / (m² + δ²),

where δ is the one whose approximation fits the probes best; one parameter fitted to 30 probes
leaves them fit for the error estimate (their squared residual comes out 0.4 % low). In two
rounds, half of the test vectors are a basis of the range that the other half found, which is a step
of subspace iteration at no further matvecs; further rounds are further steps. On that basis H is
known, so the core is made exact there by the least change in Frobenius norm, Powell's symmetric
Broyden update (Dennis and Schnabel, "Least change secant updates for quasi-Newton methods", SIAM
Review 21(4), 1979). The price of the filter is that eigenvalues near the end of the list shrink.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skerch.decompositions.recoveries.core import Core, asymmetry, largest
from skerch.measurements.summary import Summary

# filters δ that are tried, over |m_outer|
FILTER_GRID = 1.3 * 10 ** torch.linspace(-3.1, 0, 25, dtype=torch.float64, device="cpu")
MOST_CANCELLATION = 1e6  # of ‖diag(‖y_i‖) p_j‖ for a column of Q = Y'P: six digits are lost


def recover(summary: Summary, outer: int) -> Core:
    """Eigenpairs of the filtered approximation, and the next one.

    `health` has the relative asymmetry of M, which is the matvec's own error, the filter δ
    relative to the largest eigenvalue of M, and what part of H's products lies in the start, if
    there is one.
    """
    C, health = _filtered(summary, outer)
    T = C.new_zeros(len(C), 0)
    if summary.range_map is not None:
        C, T = _exact_on_range(C, summary, summary.range_map)
    values, U = largest(C, outer + 1)
    unknown = torch.linalg.norm(U - T @ (T.T @ U), dim=0)
    return Core(values, summary.P @ U, unknown, health)


def _filtered(summary: Summary, outer: int) -> tuple[Tensor, dict[str, float]]:
    """R W f(M) WᵀRᵀ, which is the approximation in the basis Q, and the health figures."""
    kept = _kept(summary)
    scale = _scale(summary)[kept]
    M = scale[:, None] * _test_products(summary)[kept][:, kept] * scale
    m, W = largest(M, len(M))
    W *= scale[:, None]
    fit = _Fit(
        summary.R[:, summary.start :][:, kept] @ W,
        m,
        summary.epsilon,
        W.T @ summary.probe_products[kept],
        summary.projected_probes,
    )
    delta = fit.best_filter(outer)
    top = float(m[0].abs())
    health = {"asymmetry": asymmetry(M), "filter": delta / top if top > 0 else 0.0}
    if summary.start:
        health["start"] = _explained(summary)
    return (fit.YW * fit.inverse(delta)) @ fit.YW.T, health


def _explained(summary: Summary) -> float:
    """‖Q₁ᵀHZ‖_F² / ‖HZ‖_F², the part of the probes' products that lies in the start."""
    of_probes = summary.gram[:, summary.stored :]
    whole = float(of_probes[summary.stored :].diagonal().sum())
    return float(of_probes[: summary.start].square().sum()) / whole if whole > 0 else 0.0


def _kept(summary: Summary) -> Tensor | slice:
    """The columns of which XᵀY is known: all but those of fresh vectors."""
    if summary.fresh is None:
        return slice(None)
    kept = torch.ones(summary.stored - summary.start, dtype=torch.bool, device=summary.gram.device)
    kept[summary.fresh] = False
    return kept


def _scale(summary: Summary) -> Tensor:
    """The factors that give the test vectors of the first round unit norm; Q's have it."""
    scale = summary.gram.new_ones(summary.stored - summary.start)
    # a sparse test vector may be zero where there are as many as N, and its product then is, too
    scale[: len(summary.norm)] = 1 / summary.norm.masked_fill(summary.norm == 0, torch.inf)
    return scale


def _test_products(summary: Summary) -> Tensor:
    """M = XᵀY. With X = [Ωᵀ, Y'P] three of its four parts are in the Gram matrix already."""
    first = len(summary.norm)
    of_omega = summary.cross[:, :first]
    if summary.range_map is None:
        return of_omega
    G = summary.gram[: len(summary.range_map), summary.start : summary.stored]
    of_range = summary.range_map.T @ G
    return torch.cat([torch.cat([of_omega, of_range[:, :first].T], dim=1), of_range])


def _exact_on_range(C: Tensor, summary: Summary, P: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric matrix nearest to C that maps T to QᵀHX', and T = QᵀX' for X' = Y'P.

    X' is orthonormal.
    """
    first, earlier = summary.start + len(summary.norm), len(P)
    norms = torch.diagonal(summary.gram)[:earlier].sqrt()
    cancellation = torch.linalg.norm(norms[:, None] * P, dim=0)  # zero for the zero columns
    known = (cancellation > 0) & (cancellation < MOST_CANCELLATION)
    T = summary.R[:, :earlier] @ P[:, known]
    D = summary.R[:, first:][:, known] - C @ T
    half = (D - T @ (T.T @ D) / 2) @ T.T
    C += half  # in place: these are as large as all else that is small
    C += half.T
    return C, T


@dataclass(frozen=True)
class _Fit:
    """How well the filtered approximation reproduces the probes, QᵀHZ ≈ (YW) f(m) (WᵀXᵀHZ)."""

    YW: Tensor  # (r, s), in the basis Q
    m: Tensor  # (s,)
    epsilon: float
    probe_products: Tensor  # (s, q)
    projected_probes: Tensor  # (r, q)

    def inverse(self, delta: float) -> Tensor:
        """f(m), zero where m is rounding."""
        resolved = self.m.abs() > self.epsilon * self.m[0].abs()
        return torch.where(resolved, self.m / (self.m**2 + delta**2), 0.0)

    def misfits(self, deltas: list[float]) -> list[float]:
        """The misfit ‖QᵀHZ - fit‖_F of each filter, by one product: one for each is much slower."""
        filtered = [self.inverse(delta)[:, None] * self.probe_products for delta in deltas]
        fits = (self.YW @ torch.cat(filtered, dim=1)).chunk(len(deltas), dim=1)
        return [float(torch.linalg.norm(self.projected_probes - fit)) for fit in fits]

    def best_filter(self, outer: int) -> float:
        """The δ of least misfit around |m_outer|, sought further where an end of the grid wins."""
        around = max(float(self.m[:outer][-1].abs()), self.epsilon * float(self.m[0].abs()))
        if around == 0:
            return 1.0
        grid = [float(delta) * around for delta in FILTER_GRID]
        best, delta = min(zip(self.misfits(grid), grid, strict=True))
        if delta in (grid[0], grid[-1]):
            factor = 0.5 if delta == grid[0] else 2.0
            while (further := self.misfits([delta * factor])[0]) < best * (1 - 1e-6):
                best, delta = further, delta * factor
        return delta
