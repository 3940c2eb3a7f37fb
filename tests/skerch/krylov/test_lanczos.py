"""Eigenpairs by Lanczos, against eigendecompositions of NumPy and products counted by SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from skerch import aslinearoperator
from skerch.errors import ShapeError, SkerchError
from skerch.krylov import lanczos, lanczos_tridiagonal
from skerch.linops import DiagonalOperator
from skerch.measurements.measure import NonFiniteError
from tests.skerch.krylov.cases import SPECTRA, matrix, peak_bytes

ORDERS = {"LM": lambda w: -abs(w), "LA": lambda w: -w, "SA": lambda w: w}


def exact(A, which, k):
    values = np.linalg.eigvalsh(A.numpy())
    return values[np.argsort(ORDERS[which](values), kind="stable")][:k]


def true_residuals(A, found):
    V = found.eigenvectors.double()
    return torch.linalg.norm(V @ A.double() - found.eigenvalues.double()[:, None] * V, dim=1)


@pytest.mark.parametrize("which", ORDERS)
@pytest.mark.parametrize("block_size", [1, 3])
@pytest.mark.parametrize("basis_size", [None, 20])
def test_finds_the_pairs_that_numpy_finds(which, block_size, basis_size):
    A = matrix("indefinite")
    how = {"which": which, "block_size": block_size, "basis_size": basis_size}
    found = lanczos(A, k=5, tol=1e-9, seed=0, **how)
    assert np.allclose(found.eigenvalues, exact(A, which, 5), rtol=1e-12)
    assert found.converged.all()
    assert torch.allclose(found.eigenvectors @ found.eigenvectors.T, torch.eye(5).double())
    assert (true_residuals(A, found) <= 1e-9 * found.eigenvalues.abs()).all()


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("block_size", [1, 7])
def test_finds_all_n_pairs(spectrum, block_size):
    A = matrix(spectrum, 30)
    found = lanczos(A, k=30, tol=1e-10, which="SA", block_size=block_size, seed=1)
    assert np.allclose(found.eigenvalues, np.linalg.eigvalsh(A.numpy()), atol=1e-12)
    assert found.converged.all()


def test_lanczos_k_30_has_no_ghost_copies_of_the_one_eigenvalue_100():
    values = torch.cat([torch.tensor([100.0]), torch.linspace(0.1, 1, 999)])
    found = lanczos(DiagonalOperator(values), k=30, seed=0)
    assert ((found.eigenvalues - 100).abs() < 1).sum() == 1
    assert np.allclose(found.eigenvalues[1:], values[1:].flip(0)[:29], rtol=1e-4)


def test_an_eigenvalue_of_multiplicity_3_is_found_3_times_by_blocks_of_3():
    A = matrix(torch.cat([torch.full((3,), 4.0), torch.linspace(0, 1, 97)]))
    found = lanczos(A, k=4, block_size=3, seed=0)
    assert np.allclose(found.eigenvalues, [4, 4, 4, 1], atol=1e-4)


def test_residuals_are_true_residuals_long_before_and_after_convergence():
    A = matrix("flat")
    for max_iter in (5, 10, 60):
        for basis_size in (None, 12):
            found = lanczos(A, k=3, max_iter=max_iter, tol=0, seed=0, basis_size=basis_size)
            off = (found.residuals - true_residuals(A, found)).abs()
            assert (off <= 1e-6 * found.residuals + 1e-14).all()


def test_residuals_of_an_operator_that_is_not_symmetric_are_true_and_end_the_iteration():
    A = matrix("decaying")
    wrong = A + 1e-3 * torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    op = aslinearoperator(lambda X: wrong @ X, shape=(100, 100), self_adjoint=True, dtype=A.dtype)
    found = lanczos(op, k=5, tol=1e-6, seed=0)
    V = found.eigenvectors
    true = torch.linalg.norm(wrong @ V.T - V.T * found.eigenvalues, dim=0)
    assert torch.allclose(found.residuals, true, rtol=1e-6)
    assert not found.converged.any()
    assert found.products < 60


def test_tol_stops_it():
    A = matrix("decaying", 300)
    products = [lanczos(A, k=5, tol=tol, seed=0).products for tol in (1e-2, 1e-4, 1e-8)]
    assert products[0] < products[1] < products[2] < 60


def test_takes_no_more_products_than_scipys_eigsh():
    values = np.load("benchmarks/spectra/mnist_mini-001000.npz")["eigenvalues"]
    ours, theirs = 0, []
    for seed in range(3):
        ours += lanczos(DiagonalOperator(values), k=10, tol=1e-4, seed=seed).products
        op = scipy.sparse.linalg.LinearOperator(
            (len(values),) * 2, matvec=lambda x: theirs.append(1) or values * x, dtype=float
        )
        v0 = np.random.default_rng(seed).standard_normal(len(values))
        scipy.sparse.linalg.eigsh(op, k=10, tol=1e-4, v0=v0)
    assert ours <= len(theirs)


@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("rank", [0, 1, 6])
def test_pairs_beyond_the_rank_are_zero(rank, block_size):
    A = matrix(torch.cat([torch.arange(1.0, rank + 1), torch.zeros(50 - rank)]))
    found = lanczos(A, k=10, block_size=block_size, seed=0)
    assert np.allclose(found.eigenvalues, exact(A, "LM", 10), atol=1e-12)
    assert torch.allclose(found.eigenvectors @ found.eigenvectors.T, torch.eye(10).double())


def test_an_operator_that_returns_its_operand_is_no_trap():
    same = aslinearoperator(lambda X: X, shape=(20, 20), self_adjoint=True, dtype=torch.float64)
    assert np.allclose(lanczos(same, k=3, seed=0).eigenvalues, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_vectors_are_at_least_float32(dtype):
    A = matrix("decaying").to(dtype)
    found = lanczos(A, k=3, seed=0)
    assert found.eigenvectors.dtype == torch.float32
    assert np.allclose(found.eigenvalues, exact(A.double(), "LM", 3), rtol=5e-3)
    assert torch.allclose(found.eigenvectors @ found.eigenvectors.T, torch.eye(3), atol=1e-5)
    assert (found.residuals.double() >= 0.9 * true_residuals(A, found)).all()


def test_the_same_seed_is_the_same_run_and_none_is_another():
    A = matrix("decaying")
    first, again = (lanczos(A, k=2, seed=3, tol=0.1).eigenvectors for _ in range(2))
    assert torch.equal(first, again)
    fresh, other = (lanczos(A, k=2, tol=0.1).eigenvectors for _ in range(2))
    assert not torch.equal(fresh, other)


@pytest.mark.parametrize("block_size", [1, 2])
def test_memory_is_basis_and_result_and_a_few_blocks(block_size):
    n, basis, k = 1_000_000, 24, 12
    diagonal = DiagonalOperator(torch.linspace(0.5, 1.5, n))
    how = {"k": k, "max_iter": 26 // block_size, "basis_size": basis, "block_size": block_size}
    lanczos(DiagonalOperator(torch.ones(30)), k=k, seed=0)  # what libraries load once
    peak = peak_bytes(lambda: lanczos(diagonal, tol=0, seed=0, **how))
    assert peak < 4 * n * (basis + k + 8 + 2 * block_size)


def test_what_does_not_fit_is_refused_with_value_and_bound():
    A = torch.eye(10)
    for how, message in [
        ({"k": 0}, "k must be at least 1"),
        ({"k": 11}, "k=11 exceeds operator size 10"),
        ({"k": 2, "max_iter": 11}, "max_iter=11 exceeds operator size 10"),
        ({"k": 4, "max_iter": 3}, "give 3 vectors; k=4"),
        ({"which": "SM", "k": 2}, "there are LM, LA, SA"),
        ({"k": 2, "block_size": 0}, "block_size=0"),
        ({"k": 2, "basis_size": 3}, "basis_size=3 is too small"),
    ]:
        with pytest.raises(SkerchError, match=message):
            lanczos(A, **how)
    with pytest.raises(SkerchError, match="symmetric"):
        lanczos(torch.triu(torch.ones(3, 3)), k=1)
    with pytest.raises(ShapeError, match="lanczos needs a square operator"):
        lanczos(torch.ones(3, 2), k=1)
    with pytest.raises(NonFiniteError, match="Product 0"):
        lanczos(DiagonalOperator(torch.tensor([1.0, float("nan"), 2.0])), k=1)


@pytest.mark.parametrize("reorthogonalize", [True, False])
def test_a_tridiagonal_matrix_has_the_moments_of_its_start(reorthogonalize):
    A = matrix("indefinite")
    v0 = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = lanczos_tridiagonal(A, v0, 8, reorthogonalize=reorthogonalize)
    T = torch.diag(found.alphas) + torch.diag(found.betas, 1) + torch.diag(found.betas, -1)
    V, v = torch.stack(found.basis), v0 / v0.norm()
    assert torch.allclose(V @ A @ V.T, T, atol=1e-10)
    assert (
        abs(float(torch.linalg.norm(A @ V[-1] - V.T @ (V @ (A @ V[-1])))) - found.last_beta) < 1e-10
    )
    for power in range(16):
        moment = v @ torch.linalg.matrix_power(A, power) @ v
        assert torch.allclose(torch.linalg.matrix_power(T, power)[0, 0], moment, atol=1e-12)


def test_a_tridiagonal_matrix_ends_with_the_krylov_space():
    found = lanczos_tridiagonal(DiagonalOperator(torch.ones(9).double()), torch.ones(9).double(), 5)
    assert (found.iterations, found.last_beta) == (1, 0)
    assert found.alphas.tolist() == pytest.approx([1])
    with pytest.raises(SkerchError, match="norm 0"):
        lanczos_tridiagonal(torch.eye(3), torch.zeros(3), 2)
