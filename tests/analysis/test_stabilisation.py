"""Eigenspaces and masks across steps, against their definitions in NumPy and Python's sets."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from skerch.analysis.stabilisation import eigenspace_overlaps, mask_overlaps
from skerch.errors import ShapeError


def bases(n, k, count, seed=0):
    """Random orthonormal bases (n, k)."""
    gaussian = np.random.default_rng(seed).standard_normal((count, n, k))
    return [torch.from_numpy(np.linalg.qr(each)[0]) for each in gaussian]


@pytest.mark.parametrize("slab_rows", [1, 7, 60, 100])
def test_overlaps_are_those_of_the_projectors(tmp_path, slab_rows):
    Ws, ks = [*bases(60, 9, 2), *bases(60, 12, 2, seed=1)], [1, 4, 9]
    with h5py.File(tmp_path / "eigh.h5", "w") as file:
        stored = [file.create_dataset(str(i), data=W.numpy()) for i, W in enumerate(Ws)]
        found, errors = eigenspace_overlaps(stored, ks, slab_rows=slab_rows)
    for place, k in enumerate(ks):
        projectors = [(W[:, :k] @ W[:, :k].T).numpy() for W in Ws]
        expected = [[np.trace(P @ Q) / k for Q in projectors] for P in projectors]
        np.testing.assert_allclose(found[place], expected, rtol=0, atol=1e-12)
    assert not errors.diagonal(dim1=1, dim2=2).any()
    assert errors[:, ~torch.eye(4, dtype=torch.bool)].isnan().all()


def test_eigenvectors_in_single_precision_have_its_overlaps_summed_in_double():
    Ws = bases(20_000, 5, 3)
    exact, _ = eigenspace_overlaps(Ws, [5])
    found, _ = eigenspace_overlaps([W.float() for W in Ws], [5])
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_an_error_bounds_what_rotations_of_both_eigenspaces_do(seed, scale):
    """The sines are exact ones, of each vector and the rotated space; spaces are near, and far."""
    N, K = 30, 6
    W, far, *turns = bases(N, K, 4, seed)
    Ws = [W, torch.linalg.qr(W + 0.1 * far).Q, far]
    exact = [torch.linalg.qr(A + scale * B).Q for A, B in zip(Ws, [*turns, W], strict=True)]
    sines = []
    for approximate, V in zip(Ws, exact, strict=True):
        each = torch.zeros(K, K, dtype=torch.float64)
        for k in range(1, K + 1):
            outside = approximate - V[:, :k] @ (V[:, :k].T @ approximate)
            each[:k, k - 1] = torch.linalg.norm(outside, dim=0)[:k]
        sines.append(each)
    ks = range(1, K + 1)
    found, errors = eigenspace_overlaps(Ws, ks, sines)
    true, _ = eigenspace_overlaps(exact, ks)
    assert ((found - true).abs() <= errors + 1e-12).all()
    if scale == 1e-3:
        assert errors.max() < 0.05


def test_where_a_gap_of_one_of_two_is_not_resolved_there_is_no_error():
    sines = [torch.zeros(3, 3).double() for _ in range(3)]
    sines[1][:, 1] = torch.nan
    _, errors = eigenspace_overlaps(bases(9, 3, 3), [1, 2, 3], [*sines[:2], None])
    known = ~errors.isnan()
    assert known[:, 0, 1].tolist() == [True, False, True]
    assert not known[:, 0, 2].any()
    assert known.diagonal(dim1=1, dim2=2).all()


def test_masks_share_what_sets_do():
    masks = [torch.randperm(40, generator=torch.Generator().manual_seed(s))[:20] for s in range(4)]
    ks = [1, 7, 20]
    found = mask_overlaps(masks, ks)
    for place, k in enumerate(ks):
        sets = [set(mask[:k].tolist()) for mask in masks]
        assert found[place].tolist() == [[len(a & b) / len(a | b) for b in sets] for a in sets]


def test_eigenvectors_of_other_networks_are_refused():
    with pytest.raises(ShapeError, match=r"at least 3 columns, not \(9, 3\), \(8, 3\)"):
        eigenspace_overlaps([*bases(9, 3, 1), *bases(8, 3, 1)], [3])
    with pytest.raises(ShapeError, match=r"at least 4 columns"):
        eigenspace_overlaps(bases(9, 3, 2), [4])


def test_no_error_takes_an_overlap_out_of_its_range():
    sines = [torch.full((2, 2), 0.9, dtype=torch.float64) for _ in range(3)]
    found, errors = eigenspace_overlaps(bases(30, 2, 3), [1, 2], sines)
    bounded = torch.maximum(found, 1 - found)
    off = ~torch.eye(3, dtype=torch.bool)
    assert torch.equal(errors[:, off], bounded[:, off])
