"""A start: eigenvectors of a neighbouring matrix are the first test vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skerch import seigh
from skerch.errors import ShapeError, SkerchError
from skerch.linops.structured import FunctionOperator

N, K = 500, 20
VALUES = torch.tensor([(-1) ** i * 10 * 0.95**i for i in range(N)], dtype=torch.float64)


@pytest.fixture(scope="module")
def pairs():
    """The eigenvectors of a symmetric matrix with `VALUES`, by a QR of NumPy's."""
    rng = np.random.default_rng(1)
    return torch.from_numpy(np.linalg.qr(rng.standard_normal((N, N)))[0])


@pytest.fixture(scope="module")
def near(pairs):
    """Vectors near the first eigenvectors."""
    rng = np.random.default_rng(2)
    return pairs[:, :K] + 0.02 * torch.from_numpy(rng.standard_normal((N, K)))


def excess(found, pairs, scale=1.0):
    """The residual over the best one."""
    H, W = (pairs * VALUES) @ pairs.T, found.eigenvectors.double()
    residual = torch.linalg.norm(H - (W * (found.eigenvalues / scale)) @ W.T)
    return float(residual / torch.linalg.norm(VALUES[K:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e7])
def test_a_near_start_leaves_less_error_than_random_vectors(pairs, near, dtype, scale):
    H = (scale * (pairs * VALUES) @ pairs.T).to(dtype)
    H = (H + H.T) / 2
    found = seigh(H, outer=K, inner=2 * K, rounds=2, start=near)
    random = seigh(H, outer=K, inner=2 * K, rounds=2)
    assert excess(found, pairs, scale) < 1.01 < 1.05 < excess(random, pairs, scale)
    assert found.health["start"] > 0.5
    off = (found.eigenvalues.abs() - scale * VALUES[: len(found.eigenvalues)].abs()).abs()
    assert (off <= found.eigenvalue_bound).double().mean() >= 0.95
    W = found.eigenvectors.double()
    assert torch.dist(W.T @ W, torch.eye(K)) < 1e-5


def test_the_start_may_be_of_any_size_rank_and_scale(pairs, near):
    H = (pairs * VALUES) @ pairs.T
    twice = torch.cat([near, near[:, :5], torch.zeros(N, 1)], dim=1)
    many = pairs[:, : 3 * K]
    for start in (near[:, :3], 1e6 * near, twice, many, near.float()):
        found = seigh(H, outer=K, inner=3 * K, rounds=3, start=start)
        assert excess(found, pairs) < 1.03


def test_each_round_is_a_product_of_its_columns(pairs, near):
    H, spent = (pairs * VALUES) @ pairs.T, []

    def product(X):
        spent.append(X.shape[1])
        return H @ X

    op = FunctionOperator(product, (N, N), torch.float64, self_adjoint=True)
    seigh(op, outer=K, inner=2 * K, rounds=3, start=near, probes=4)
    assert sum(spent) == 2 * K + 4


def test_a_stale_start_is_told_and_costs_accuracy_but_no_wrong_bound(pairs):
    """It spans eigenvectors at the other end, in whose products is nothing but themselves."""
    H = (pairs * VALUES) @ pairs.T
    found = seigh(H, outer=K, inner=3 * K, start=pairs[:, -K:])
    assert found.health["start"] < 0.1
    assert excess(found, pairs) < 1.1
    nearest = (found.eigenvalues[:, None] - VALUES).abs().min(dim=1).values
    assert (nearest <= found.eigenvalue_bound).double().mean() >= 0.95
    assert abs(float(found.residual[-1] / torch.linalg.norm(VALUES[K:])) - 1) < 0.2


def test_a_start_that_cannot_be_is_refused(pairs, near):
    H = (pairs * VALUES) @ pairs.T
    seigh(H, outer=K, start=near.numpy())  # as H may be one
    for wrong in (near[1:], near[:, 0], near[:, :0]):
        with pytest.raises(ShapeError, match=r"start has the shape .*; it must be vectors"):
            seigh(H, outer=K, start=wrong)
    broken = near.clone()
    broken[3, 2] = torch.nan
    with pytest.raises(SkerchError, match="Column 2 of the start is not finite"):
        seigh(H, outer=K, start=broken)
    with pytest.raises(SkerchError, match="start is 'previous'; it must be vectors"):
        seigh(H, outer=K, start="previous")
    with pytest.raises(SkerchError, match="'oversampled' has no start; take nystrom"):
        seigh(H, outer=K, recovery="oversampled", start=near)
    with pytest.raises(SkerchError, match="A start needs a second round"):
        seigh(H, outer=K, rounds=1, start=near)
