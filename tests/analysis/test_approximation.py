"""Approximations on a top eigenspace, against dense matrices and their eigendecompositions."""

from __future__ import annotations

import pytest
import torch

from skerch import aslinearoperator, seigh
from skerch.a_posteriori import eigenspace_sines
from skerch.analysis import approximation
from skerch.analysis.approximation import approximate
from skerch.curvature import FisherOperator, GGNOperator
from skerch.errors import ShapeError
from skerch.jobs.problems import build_model, load_data
from skerch.jobs.problems.digits_mlp import digits_mlp
from skerch.kronecker.fit import kronecker

K = 20


def eigenpairs(A, k=K):
    values, vectors = torch.linalg.eigh(A)
    order = values.abs().argsort(descending=True)[:k]
    return values[order], vectors[:, order]


def symmetric(n, seed):
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return A @ A.T / n


def test_numbers_are_those_of_their_definitions(monkeypatch):
    monkeypatch.setattr(approximation, "COLUMNS", 8)
    H, F = symmetric(60, 0), symmetric(60, 1)
    values, W = eigenpairs(H)
    _, V = eigenpairs(F, K - 5)
    found = approximate(aslinearoperator(F), V, values, W)
    k = K - 5
    expected = [float((W[:, :j].T @ V[:, :j]).square().sum()) / j for j in range(1, k + 1)]
    assert found.overlap.tolist() == pytest.approx(expected, rel=1e-12)
    assert found.baseline.tolist() == [j / 60 for j in range(1, k + 1)]
    torch.testing.assert_close(found.quotients, (W.T @ F @ W).diagonal())
    residual = float(((F - H) @ W).norm() / values.norm())
    assert float(found.residual[0]) == pytest.approx(residual, rel=1e-12)
    unknown = found.overlap_error, found.pair_residual, found.residual[1:]
    assert all(each.isnan().all() for each in unknown)


def test_a_matrix_captures_its_own_eigenspace():
    H = symmetric(60, 0)
    values, W = eigenpairs(H)
    found = approximate(aslinearoperator(H), W, values, W)
    torch.testing.assert_close(found.overlap, torch.ones(K, dtype=torch.float64))
    torch.testing.assert_close(found.quotients, values)
    assert found.residual[0] < 1e-14


@pytest.mark.parametrize("scale", [1e-3, 1e-2])
def test_what_eigenpairs_are_off_by_is_within_the_errors(scale):
    """Overlap, residual and quotients of eigenvectors that are near, beside those of exact ones."""
    n = 40
    Q = torch.linalg.qr(symmetric(n, 2)).Q
    values = 2.0 ** -torch.arange(n, dtype=torch.float64)
    H, F = (Q * values) @ Q.T, symmetric(n, 3)
    _, V = eigenpairs(F, 6)
    noise = torch.randn(n, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    W = torch.linalg.qr(Q[:, :6] + scale * 2.0 ** -torch.arange(6.0) * noise).Q
    near = (W.T @ H @ W).diagonal()
    rho = (H @ W - W * near).norm(dim=0)
    sines = eigenspace_sines(near, rho, (near - values[:6]).abs(), float(values[6]))
    found = approximate(aslinearoperator(F), V, near, W, pair_residual=rho, sines=sines)
    exact = approximate(aslinearoperator(F), V, values[:6], Q[:, :6])
    off = (found.overlap - exact.overlap).abs()
    assert ((off <= found.overlap_error) | found.overlap_error.isnan()).all()
    assert found.overlap_error.isfinite().sum() >= 4
    residual = float(((F - H) @ W).norm() / near.norm())
    assert abs(found.residual[0] - residual) <= found.residual[1]
    assert ((W.T @ H @ W).diagonal() - near).abs().max() <= found.pair_residual.max()


def test_shapes_that_do_not_belong_together_are_refused():
    values, W = eigenpairs(symmetric(30, 0))
    with pytest.raises(ShapeError, match="not of one matrix"):
        approximate(aslinearoperator(symmetric(31, 0)), W, values, W)
    with pytest.raises(ShapeError, match="not of one matrix"):
        approximate(aslinearoperator(symmetric(30, 0)), W[1:], values, W)


def test_a_sketch_of_digits_tells_how_far_it_may_be_from_the_exact_decomposition():
    torch.manual_seed(0)
    problem = digits_mlp()
    model, data = build_model(problem).double(), load_data(problem, "test")
    batch = data.tensors[0][:50].double(), data.tensors[1][:50]
    ggn = GGNOperator.of_loss(model, [batch], problem.loss_fn)
    op = kronecker(FisherOperator.of_loss(model, [batch], problem.loss_fn), "ekfac")
    _, V = op.top(K)
    dense = ggn @ torch.eye(len(V), dtype=torch.float64)
    values, W = eigenpairs(dense)
    exact = approximate(op, V, values, W)
    near = seigh(ggn, outer=K)
    sines = eigenspace_sines(near.eigenvalues, near.pair_bound, near.eigenvalue_bound, near.beyond)
    pairs = near.eigenvalues, near.eigenvectors
    found = approximate(op, V, *pairs, pair_residual=near.pair_bound, sines=sines)
    off = (found.overlap - exact.overlap).abs()
    known = found.overlap_error.isfinite()
    assert known[:9].any()
    assert (off <= found.overlap_error)[known].all()
    assert 0 < found.residual[1] < 1e-3
    assert abs(found.residual[0] - exact.residual[0]) <= found.residual[1]
    assert 10 * exact.baseline[9] < exact.overlap[9] < 1
