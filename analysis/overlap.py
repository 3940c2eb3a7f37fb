"""How much of the top eigenspace of a network's Hessian lies on its largest parameters.

With W (N, K) the orthonormal top eigenvectors and mask_k the k largest parameters by magnitude,

    overlap(k) = ‖W[mask_k, :k]‖_F² / k,    k = 1 … K,

the overlap metric between the top-k eigenspace and the span of the mask's coordinates: the mean
squared cosine of their principal angles. It is 1 where they agree and 0 where they are orthogonal.

A uniformly random mask adds up k of the N leverage scores d_i = ‖W[i, :k]‖², whose sum is k, drawn
without replacement. Its overlap therefore has, exactly (Cochran 1977, Sampling Techniques, 2.5),

    mean k / N,    variance σ²(d) (N - k) / ((N - 1) k),    σ²(d) = Σ d_i² / N - (Σ d_i / N)².

Few parameters have most of the leverage, so that the overlaps of random masks are skewed. Their
quantiles are taken over masks that are drawn. No mask of k parameters has a larger overlap than the
one of the k largest d_i, the best.

A mask of m parameters that is the same for every k has ‖W[mask, :k]‖_F² / min(k, m) instead, which
is at most 1, too; its mean over random masks is max(k, m) / N.

How far overlap(k) may be off follows from how far each w_i lies outside of the exact top-k space.
With Q the projector on that space, sin_i = ‖(I - Q) w_i‖ and s_i = ‖W[mask_k, i]‖², it is at most

    (2 Σ sin_i √(s_i (1 - s_i)) + Σ sin_i²) / k,    i = 1 … k.

For P = WWᵀ and the mask's projector M, k times the error is tr M(Q - P), and in the planes that P
and Q share, -2 Σ w_iᵀM(I - P)(I - Q)w_i and Σ sin²θ_j (z_jᵀM z_j - p_jᵀM p_j) add up to that, with
p_j in W's space and z_j orthogonal to it. ‖(I - P)M w_i‖² = s_i - ‖WᵀM w_i‖² ≤ s_i - s_i².
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from skerch.analysis.masks import magnitude_mask, random_mask, ties
from skerch.errors import ShapeError, SkerchError

SLAB_ENTRIES = 2**22  # read at a time: 16 MiB in float32
PIECE_ENTRIES = 2**18  # of a slab, which stay in the processor's cache
MOST_GRID_POINTS = 32  # values of k at which the quantiles are taken, in geometric steps
QUANTILES = (0.025, 0.975)


class RowSlabs(Protocol):
    """A matrix that is read in row slabs: a tensor, a NumPy array or an HDF5 dataset."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True)
class OverlapResult:
    """Overlap of the top-k eigenspace with masks of k parameters, for k = 1 … K; float64."""

    overlap: Tensor  # (K,) with the magnitude mask
    overlap_error: Tensor  # (K,) how far it may be off; NaN where that is not known
    baseline: Tensor  # (K,) k / N, the mean over random masks
    deviation: Tensor  # (K,) the standard deviation over random masks
    grid: Tensor  # (G,) some values of k, from 1 to K
    quantiles: Tensor  # (2, G) of random masks there: 2.5 % are below, 2.5 % above
    mask: Tensor  # (K,) indices of the largest parameters, the largest first
    ties: Tensor  # (2, K) how many have the least magnitude in the mask: within it, and in all
    best: Tensor  # (G,) the largest overlap that any mask of k parameters has
    others: Tensor  # (M, G) with other masks

    @property
    def multiple(self) -> Tensor:
        """The overlap as a multiple of its baseline, (K,)."""
        return self.overlap / self.baseline


def overlap_curve(sorted_rows: Tensor) -> Tensor:
    """‖A[:k, :k]‖_F² / k for k = 1 … K, as float64 (K,).

    A (K, K) has the eigenvectors' rows in the mask's order. All k come at once, as the diagonal of
    the two-dimensional cumulative sum of squares. Raises `ShapeError` unless A is square.
    """
    K = len(sorted_rows)
    if sorted_rows.shape != (K, K):
        raise ShapeError(
            f"An overlap curve takes as many rows as columns, not {tuple(sorted_rows.shape)}."
        )
    energy = sorted_rows.double().square().cumsum(0).cumsum(1).diagonal()
    return energy / torch.arange(1, K + 1, dtype=torch.float64, device=energy.device)


def overlap(
    eigenvectors: RowSlabs,
    parameters: Tensor,
    *,
    sines: Tensor | None = None,
    orders: Sequence[Tensor] = (),
    given: Sequence[Tensor] = (),
    random_masks: int = 1000,
    seed: int = 0,
    slab_rows: int | None = None,
) -> OverlapResult:
    """Overlap of eigenvectors (N, K) with the magnitude masks of parameters (N,), and with chance.

    The eigenvectors may be larger than memory: they are read once, in slabs of `slab_rows` rows
    (default: `SLAB_ENTRIES` entries). Only the K rows of the magnitude mask are kept, and of each
    random mask the sums of leverage at the grid's values of k. `sines` (K, K), as from
    `skerch.a_posteriori.eigenspace_sines`, give the error of the overlap.

    Other masks are the first k of `orders` (at least K,) of parameters, then those that are `given`
    as indices (m,), which are the same for every k.

    Raises `ShapeError` where the two do not belong together, and `SkerchError` where a parameter or
    an eigenvector is not finite or the eigenvectors are not normalised.
    """
    if len(eigenvectors.shape) != 2 or tuple(parameters.shape) != tuple(eigenvectors.shape[:1]):
        raise ShapeError(
            f"Eigenvectors (N, K) and parameters (N,) are of one network, not of shapes "
            f"{tuple(eigenvectors.shape)} and {tuple(parameters.shape)}."
        )
    N, K = eigenvectors.shape
    slab_rows = slab_rows or max(1, SLAB_ENTRIES // max(1, K))
    mask = magnitude_mask(parameters, K)
    grid = _grid(K if random_masks else 0)
    ranks = torch.arange(K, device="cpu")
    drawn = [random_mask(N, K, seed, index) for index in range(random_masks)]
    chance = _Masks(grid, [(each, ranks) for each in drawn])
    nested = [(order[:K].cpu(), ranks) for order in orders]
    others = _Masks(grid, nested + [(each.cpu(), torch.zeros_like(each)) for each in given])
    best = _Best(grid)
    rows = torch.empty(K, K, dtype=torch.float64, device="cpu")
    total = torch.zeros(K, dtype=torch.float64, device="cpu")
    squares = torch.zeros(K, dtype=torch.float64, device="cpu")
    for start in range(0, N, slab_rows):
        slab = torch.as_tensor(eigenvectors[start : start + slab_rows], device="cpu").detach()
        here = (mask >= start) & (mask < start + len(slab))
        rows[here] = slab[mask[here] - start].double()
        scores = []
        for piece in torch.split(slab, max(1, PIECE_ENTRIES // max(1, K))):
            leverage = piece.double().square().cumsum(1)
            total += leverage.sum(0)
            squares += leverage.square().sum(0)
            scores.append(leverage[:, grid - 1])
        slab_scores = torch.cat(scores)
        for masks in (chance, others, best):
            masks.add(slab_scores)

    k = torch.arange(1, K + 1, dtype=torch.float64, device="cpu")
    unfit = ~(total <= 1.01 * k)
    if unfit.any():
        first = int(unfit.nonzero()[0])
        raise SkerchError(
            f"The squared norms of the first {first + 1} eigenvectors add up to "
            f"{float(total[first]):.3g}, not {first + 1}: eigenvectors are orthonormal columns "
            "(N, K), finite and of unit length."
        )
    variance = (squares / N - (total / N).square()).clamp(min=0.0)
    return OverlapResult(
        overlap=overlap_curve(rows),
        overlap_error=torch.full_like(k, math.nan) if sines is None else overlap_error(rows, sines),
        baseline=k / N,
        deviation=(variance * (N - k) / (max(1, N - 1) * k)).sqrt(),
        grid=grid,
        quantiles=_quantiles(chance.overlaps()),
        mask=mask,
        ties=ties(parameters, mask),
        best=best.overlaps(),
        others=others.overlaps(),
    )


def overlap_error(sorted_rows: Tensor, sines: Tensor) -> Tensor:
    """How far each overlap may be off, (K,), for sines (K, K) of k = 1 … K.

    The rows are as those of `overlap_curve`: coordinates of the eigenvectors in any orthonormal
    vectors.
    """
    on_mask = sorted_rows.square().cumsum(0).T.clamp(max=1)  # s_i of mask_k, (i, k)
    terms = 2 * sines * (on_mask * (1 - on_mask)).sqrt() + sines.square()
    k = torch.arange(1, len(sines) + 1, dtype=torch.float64, device="cpu")
    return terms.sum(0) / k


def _grid(K: int) -> Tensor:
    """Some values of k from 1 to K."""
    steps = torch.logspace(
        0, math.log10(max(1, K)), MOST_GRID_POINTS, dtype=torch.float64, device="cpu"
    )
    grid: Tensor = torch.unique(steps[: len(steps) if K else 0].round().long())
    return grid


class _Masks:
    """The overlaps of masks at the grid's values of k, added up over slabs of parameters.

    A mask is indices of parameters, each with a rank: it is in the mask of k for k > rank.
    """

    def __init__(self, grid: Tensor, masks: Sequence[tuple[Tensor, Tensor]]):
        self._grid, self._sizes = grid, [len(indices) for indices, _ in masks]
        none = grid[:0]
        self._rows, place = torch.cat([none, *(indices for indices, _ in masks)]).sort()
        numbers = torch.arange(len(masks), device="cpu")
        lengths = torch.tensor(self._sizes, dtype=torch.long, device="cpu")
        self._mask = numbers.repeat_interleave(lengths)[place]
        self._rank = torch.cat([none, *(ranks for _, ranks in masks)])[place]
        self._sums = torch.zeros(len(masks), len(grid), dtype=torch.float64, device="cpu")
        self._row = self._next = 0

    def add(self, scores: Tensor) -> None:
        """Add the leverage scores ‖W[i, :k]‖² at the grid's k, (n, G), of the next n parameters."""
        end = self._row + len(scores)
        last = int(torch.searchsorted(self._rows, end))
        here = slice(self._next, last)
        inside = self._rank[here, None] < self._grid
        self._sums.index_add_(0, self._mask[here], scores[self._rows[here] - self._row] * inside)
        self._row, self._next = end, last

    def overlaps(self) -> Tensor:
        """The masks' overlaps at the grid's values of k, (M, G)."""
        sizes = torch.tensor(self._sizes, dtype=torch.long, device="cpu")
        return self._sums / torch.minimum(self._grid, sizes[:, None])


class _Best:
    """The largest overlaps that masks of k parameters have, found over slabs of parameters."""

    def __init__(self, grid: Tensor):
        self._grid = grid
        self._largest = [torch.empty(0, dtype=torch.float64, device="cpu") for _ in grid]

    def add(self, scores: Tensor) -> None:
        """Take the leverage scores of the next n parameters, (n, G)."""
        for place, k in enumerate(self._grid.tolist()):
            known = torch.cat([self._largest[place], scores[:, place]])
            self._largest[place] = known.topk(min(k, len(known))).values

    def overlaps(self) -> Tensor:
        """The mean of the k largest scores at the grid's values of k, (G,)."""
        sums = [float(largest.sum()) for largest in self._largest]
        return torch.tensor(sums, dtype=torch.float64, device="cpu") / self._grid


def _quantiles(overlaps: Tensor) -> Tensor:
    """The quantiles over masks (M, G), (2, G)."""
    if not overlaps.numel():
        return overlaps.new_empty(2, 0)
    return torch.quantile(overlaps, overlaps.new_tensor(QUANTILES), dim=0)
