"""What changes between the recorded steps of a training: top eigenspaces, and magnitude masks.

With W_a and W_b (N, k) the top-k eigenvectors of two Hessians of one network,

    overlap(a, b) = ‖W_aᵀ W_b‖_F² / k,

the mean squared cosine of the principal angles between the two eigenspaces: 1 where they agree, and
k / N in the mean for independent uniformly random ones. Two masks A and B of k parameters have

    IoU(A, B) = |A ∩ B| / |A ∪ B| = overlap / (2 - overlap),    overlap = |A ∩ B| / k.

Eigenvectors that are sketched span the exact eigenspaces but for the sines sin_i = ‖(I - Q) w_i‖,
Q the exact projector. With P_a = W_aW_aᵀ, and D_a = Q_a - P_a,

    tr Q_aQ_b - tr P_aP_b = tr D_aP_b + tr P_aD_b + tr D_aD_b.

The first two terms are at most the bound of `skerch.analysis.overlap`, with the other projector in
the place of the mask's; the last is at most ‖D_a‖_F ‖D_b‖_F, where ‖D‖_F² = 2 Σ sin_i².
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from skerch.analysis.approximation import Columns
from skerch.analysis.overlap import overlap_curve, overlap_error
from skerch.errors import ShapeError
from skerch.hdf5 import CHUNK_ROWS


def eigenspace_overlaps(
    eigenvectors: Sequence[Columns],
    ks: Sequence[int],
    sines: Sequence[Tensor | None] | None = None,
    *,
    slab_rows: int = CHUNK_ROWS,
) -> tuple[Tensor, Tensor]:
    """Overlaps of the top-k eigenspaces of H Hessians, and how far they may be off.

    Args:
        eigenvectors: H of (N, at least K), K the largest k. They may be larger than memory: they
            are read once, side by side in slabs of rows; H² / 2 products (K, K) are kept.
        sines: of each Hessian, as from `skerch.a_posteriori.eigenspace_sines`, or None.

    Returns two tensors (len(ks), H, H), float64. An error is NaN where the k-th gap of one of the
    two is not resolved, or its sines are not known; a space with itself has no error, and none is
    larger than what takes an overlap to 0 or 1.

    Raises ShapeError where the eigenvectors are not of one network, or fewer than K.
    """
    H, K = len(eigenvectors), max(ks, default=0)
    shapes = [tuple(W.shape) for W in eigenvectors]
    if len({N for N, _ in shapes}) > 1 or any(columns < K for _, columns in shapes):
        raise ShapeError(
            f"Eigenvectors of one network have the same N rows each and at least {K} columns, not "
            f"{', '.join(map(str, shapes))}."
        )
    products = [
        torch.zeros(K, (H - a - 1) * K, dtype=torch.float64, device="cpu") for a in range(H)
    ]
    for start in range(0, shapes[0][0] if shapes else 0, slab_rows):
        rows = slice(start, start + slab_rows), slice(0, K)
        slab = torch.cat([torch.as_tensor(W[rows], device="cpu").detach() for W in eigenvectors], 1)
        for a in range(H - 1):
            here, further = slab[:, a * K : (a + 1) * K], slab[:, (a + 1) * K :]
            products[a] += here.mT @ further

    known = [None] * H if sines is None else sines
    off = [_unknown(K) if each is None else each[:K, :K] for each in known]
    index = torch.tensor([k - 1 for k in ks], dtype=torch.long, device="cpu")
    overlaps = torch.ones(len(ks), H, H, dtype=torch.float64, device="cpu")
    errors = torch.zeros_like(overlaps)
    for a in range(H):
        for b in range(a + 1, H):
            cosines = products[a][:, (b - a - 1) * K : (b - a) * K]
            error = overlap_error(cosines, off[b]) + overlap_error(cosines.mT, off[a])
            error += 2 * _distance(off[a]) * _distance(off[b])
            found = overlap_curve(cosines)
            error = torch.minimum(error, torch.maximum(found, 1 - found))  # both are in [0, 1]
            overlaps[:, a, b] = overlaps[:, b, a] = found[index]
            errors[:, a, b] = errors[:, b, a] = error[index]
    return overlaps, errors


def mask_overlaps(masks: Sequence[Tensor], ks: Sequence[int]) -> Tensor:
    """IoU of the first k indices of T masks (at least K,), float64 (len(ks), T, T)."""
    T = len(masks)
    found = torch.ones(len(ks), T, T, dtype=torch.float64, device="cpu")
    for place, k in enumerate(ks):
        for a in range(T):
            for b in range(a):
                common = int(torch.isin(masks[a][:k], masks[b][:k]).sum())
                found[place, a, b] = found[place, b, a] = common / (2 * k - common)
    return found


def _unknown(K: int) -> Tensor:
    return torch.full((K, K), math.nan, dtype=torch.float64, device="cpu")


def _distance(sines: Tensor) -> Tensor:
    """‖Q - P‖_F / √(2k) of the top-k spaces, (K,), which is (Σ sin_i² / k)^½."""
    k = torch.arange(1, len(sines) + 1, dtype=torch.float64, device="cpu")
    return (sines.square().sum(0) / k).sqrt()
