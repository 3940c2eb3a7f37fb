"""Principal angles against SciPy and angles that are built in; metrics against their matrices."""

from __future__ import annotations

import math

import h5py
import numpy as np
import pytest
import scipy.linalg
import torch

from skerch.analysis.grassmann import METRICS, PrincipalAngles, principal_angles
from skerch.errors import ShapeError, SkerchError

N = 90


def basis(k, seed=0, n=N):
    """Columns of a random subspace, orthonormal."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k))).Q


def turned(theta, n=N):
    """Two orthonormal bases with the principal angles theta (k,), in no special coordinates."""
    k = len(theta)
    Q, mix = basis(2 * k, n=n), basis(k, seed=1, n=k)
    return Q[:, :k], (Q[:, :k] * np.cos(theta) + Q[:, k:] * np.sin(theta)) @ mix


def mask(k, seed=0):
    """The indices of a random mask."""
    return np.random.default_rng(seed).choice(N, k, replace=False)


def built(indices):
    """The matrix of a mask."""
    return np.eye(N)[:, indices]


def metrics(first, second):
    angles = principal_angles(first, second)
    return {name: float(metric.value(angles)) for name, metric in METRICS.items()}


@pytest.mark.parametrize(("k1", "k2"), [(7, 7), (12, 5), (5, 12), (1, 1), (90, 4)])
def test_angles_are_those_of_scipy(k1, k2):
    A, B = basis(k1), basis(k2, seed=1)
    angles = principal_angles(A, B, slab_rows=13).angles
    assert angles.shape == (min(k1, k2),)
    expected = scipy.linalg.subspace_angles(A, B)[::-1]
    np.testing.assert_allclose(angles, expected, rtol=0, atol=1e-14)


def test_subspaces_that_must_intersect_have_angles_of_0():
    A, B = basis(50), basis(60, seed=1)
    angles = principal_angles(A, B).angles
    assert angles[:20].max() < 1e-14
    expected = scipy.linalg.subspace_angles(A, B)[::-1]
    np.testing.assert_allclose(angles[20:], expected[20:], rtol=0, atol=1e-14)


def test_angles_near_0_and_near_a_right_one_have_their_digits():
    theta = np.array([1e-10, 1e-8, 1e-4, 0.5, math.pi / 2 - 1e-4, math.pi / 2 - 1e-10])
    found = principal_angles(*turned(theta), slab_rows=20)
    np.testing.assert_allclose(found.angles, theta, rtol=2e-6)
    np.testing.assert_allclose(found.angles, theta, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found.cosines, np.cos(theta), rtol=2e-6)


def test_near_parallel_subspaces_have_distances_with_digits():
    theta = np.full(3, 1e-10)
    found = metrics(*turned(theta))
    for name in ("geodesic", "chordal_frobenius", "projection_frobenius", "fubini_study"):
        assert found[name] == pytest.approx(3**0.5 * 1e-10, rel=2e-6)
    for name in ("chordal_2", "projection_2"):
        assert found[name] == pytest.approx(1e-10, rel=2e-6)
    assert found["overlap"] == found["iou"] == 1


def test_metrics_have_the_values_of_their_matrices():
    A, B = basis(6), basis(6, seed=1)
    found = metrics(A, B)
    U, cosines, Vt = np.linalg.svd(A.T @ B)
    aligned, projectors = A @ U - B @ Vt.T, A @ A.T - B @ B.T
    expected = {
        "geodesic": np.linalg.norm(scipy.linalg.subspace_angles(A, B)),
        "chordal_2": np.linalg.norm(aligned, 2),
        "chordal_frobenius": np.linalg.norm(aligned),
        "projection_2": np.linalg.norm(projectors, 2),
        "projection_frobenius": np.linalg.norm(projectors) / 2**0.5,
        "fubini_study": np.arccos(abs(np.linalg.det(A.T @ B))),
        "overlap": np.linalg.norm(A.T @ B) ** 2 / 6,
        "iou": (cosines**2).sum() / (12 - (cosines**2).sum()),
    }
    assert found == pytest.approx(expected, rel=1e-12)


def test_metrics_have_their_closed_forms_for_known_angles():
    found = metrics(*turned(np.array([math.pi / 6, math.pi / 3])))
    expected = {
        "geodesic": math.pi * 5**0.5 / 6,
        "chordal_2": 1,
        "chordal_frobenius": (3 - 3**0.5) ** 0.5,
        "projection_2": 3**0.5 / 2,
        "projection_frobenius": 1,
        "fubini_study": math.acos(3**0.5 / 4),
        "overlap": 0.5,
        "iou": 1 / 3,
    }
    assert found == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (3, 6)])
def test_normalised_metrics_reach_0_and_1(k1, k2):
    Q = basis(k1 + k2)
    same, apart = (principal_angles(Q[:, :k1], Q[:, i : i + k2]) for i in (0, k1))
    for name, metric in METRICS.items():
        similar = int(name in ("overlap", "iou"))
        assert float(metric.normalized(same)) == pytest.approx(similar, abs=1e-14)
        assert float(metric.normalized(apart)) == pytest.approx(1 - similar, abs=1e-14)


def test_metrics_do_not_depend_on_order_bases_or_coordinates():
    A, B = basis(5), basis(8, seed=1)
    expected = metrics(A, B)
    mixed, scaled = A @ basis(5, seed=2, n=5), B * np.logspace(-3, 3, 8)
    for pair in ((B, A), (mixed, B), (A, scaled), (basis(N, seed=3) @ A, basis(N, seed=3) @ B)):
        assert metrics(*pair) == pytest.approx(expected, rel=1e-12)


def test_the_product_of_many_cosines_does_not_underflow():
    theta = torch.full((2000,), 1.5, dtype=torch.float64)
    many = PrincipalAngles(theta.cos(), theta.sin(), (2000, 2000))
    assert float(METRICS["fubini_study"].value(many)) == pytest.approx(math.pi / 2, rel=1e-15)
    small = torch.full((2000,), 1e-3, dtype=torch.float64)
    many = PrincipalAngles(small.cos(), small.sin(), (2000, 2000))
    expected = math.acos(math.cos(1e-3) ** 2000)
    assert float(METRICS["fubini_study"].value(many)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", [3, 8, 40, 90])
def test_a_mask_is_the_span_of_its_coordinates(k):
    W = basis(8)
    expected = principal_angles(W, built(mask(k)))
    for pair in ((W, mask(k)), (mask(k), torch.from_numpy(W))):
        found = principal_angles(*pair, slab_rows=17)
        np.testing.assert_allclose(found.angles, expected.angles, rtol=0, atol=1e-14)
        assert found.angles.shape == (min(k, 8),)


def test_the_overlap_with_a_mask_is_that_of_its_rows():
    W = basis(8)
    assert metrics(W, mask(8))["overlap"] == pytest.approx((W[mask(8)] ** 2).sum() / 8, rel=1e-14)


@pytest.mark.parametrize(("k1", "k2"), [(30, 30), (20, 45)])
def test_two_masks_have_the_angles_of_their_matrices_and_their_iou(k1, k2):
    first, second = mask(k1), mask(k2, seed=1)
    found = principal_angles(torch.from_numpy(first), second)
    expected = principal_angles(built(first), built(second))
    np.testing.assert_allclose(found.angles, expected.angles, rtol=0, atol=1e-14)
    a, b = set(first.tolist()), set(second.tolist())
    ours = metrics(first, second)
    assert ours["iou"] == pytest.approx(len(a & b) / len(a | b), rel=1e-15)
    if k1 == k2:
        assert ours["iou"] == pytest.approx(ours["overlap"] / (2 - ours["overlap"]), rel=1e-15)


def test_files_are_streamed_to_the_same_angles(tmp_path):
    A, B = (basis(k, seed=k).astype(np.float32) for k in (6, 9))
    with h5py.File(tmp_path / "bases.h5", "w") as file:
        first, second = file.create_dataset("A", data=A), file.create_dataset("B", data=B)
        for pair, expected in (((first, second), (A, B)), ((first, mask(7)), (A, mask(7)))):
            streamed = principal_angles(*pair, slab_rows=11).angles
            np.testing.assert_allclose(
                streamed, principal_angles(*expected).angles, rtol=0, atol=1e-14
            )


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (basis(3), basis(3, n=80), ShapeError, r"same N.*\(90, 3\) and \(80, 3\)"),
        (basis(3), np.zeros((2, 2, 2)), ShapeError, "not of shapes"),
        (basis(3), basis(3)[:, :0], ShapeError, "at least one dimension"),
        (basis(3)[:, [0, 1, 0]], basis(3), SkerchError, "Column 2 .* depends on those before it"),
        (basis(3), basis(3)[:, [0, 1, 0]], SkerchError, "Column 2 .* depends on those before it"),
        (basis(3) * [1, np.nan, 1], basis(3), SkerchError, r"Column . .* not finite"),
        (basis(3) * 0, mask(3), SkerchError, "Column 0 .* depends"),
        (basis(3) * 1j, basis(3), SkerchError, "real vectors"),
        (mask(3), torch.as_tensor(basis(3)).cfloat(), SkerchError, "imaginary part"),
        (basis(9, n=9)[:5], np.arange(2), SkerchError, "Column 5 .* depends"),
        (basis(3), np.array([1, 90]), SkerchError, "indices from 0 to 90 - 1, not 1 to 90"),
        (mask(3), np.array([-1, 2]), SkerchError, "not -1 to 2"),
        (mask(3), np.array([2, 2]), SkerchError, "indices are distinct; 1 of 2 repeat"),
        (basis(3), np.ones(90, dtype=bool), SkerchError, r"torch.bool.*nonzero\(\)"),
    ],
)
def test_what_is_no_pair_of_subspaces_is_refused(first, second, error, message):
    with pytest.raises(error, match=message):
        principal_angles(first, second)
