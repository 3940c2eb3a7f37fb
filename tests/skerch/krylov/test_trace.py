"""Estimates of the trace: no bias, intervals that hold, errors per product, memory, deflation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from skerch import seigh
from skerch.errors import ShapeError, SkerchError
from skerch.krylov import hutch_plus_plus, hutchinson, lanczos, trace
from skerch.linops import DiagonalOperator
from tests.skerch.krylov.cases import SPECTRA, matrix, peak_bytes

METHODS = ("hutchinson", "hutch++", "xtrace", "xnystrace")
DRAWS = 400


def draws(A, method, num_matvecs, count=DRAWS, **how):
    found = [
        trace(A, num_matvecs=num_matvecs, method=method, seed=seed, **how) for seed in range(count)
    ]
    return found, torch.tensor([each.estimate for each in found]) - float(A.trace())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_intervals_hold_95_in_100_and_there_is_no_bias(spectrum, method):
    if spectrum == "indefinite" and method == "xnystrace":
        return
    A = matrix(spectrum)
    found, off = draws(A, method, 24)
    held = sum(abs(x) <= each.interval.error for x, each in zip(off.tolist(), found, strict=True))
    assert held >= 0.94 * DRAWS
    if spectrum != "rank one" or method == "hutchinson":
        assert abs(float(off.mean())) <= 3.5 * float(off.std()) / math.sqrt(DRAWS)
        widths = torch.tensor([each.interval.error for each in found])
        assert float(widths.median()) < 4.5 * float(off.square().mean().sqrt())


def test_the_stderr_of_xtrace_is_its_error_and_not_what_dependent_samples_scatter():
    for method in ("xtrace", "xnystrace"):
        found, off = draws(matrix("decaying"), method, 40, 200)
        variance = torch.tensor([each.stderr**2 for each in found]).mean()
        assert float(variance / off.square().mean()) == pytest.approx(1, abs=0.3)
        plain = torch.stack([each.samples.var() / len(each.samples) for each in found]).mean()
        assert float(plain / off.square().mean()) < 0.7


def test_xtrace_errs_by_at_most_0_9_of_hutch_plus_plus_over_40_seeds():
    values = torch.from_numpy(np.load("benchmarks/spectra/mnist_mini-001000.npz")["eigenvalues"])
    op, error = rotated(values), {}
    for method in ("hutch++", "xtrace"):
        off = [
            trace(op, num_matvecs=30, method=method, seed=seed).estimate - values.sum()
            for seed in range(40)
        ]
        error[method] = float(torch.stack(off).square().mean().sqrt())
    assert error["xtrace"] <= 0.9 * error["hutch++"]


def rotated(values):
    """That spectrum with eigenvectors that are no unit vectors, of which signs know the trace."""
    from scipy.fft import dct, idct

    from skerch import aslinearoperator

    signs = np.random.default_rng(0).choice([-1.0, 1.0], len(values))[:, None]

    def product(X):
        Z = dct(signs * X.numpy(), norm="ortho", axis=0)
        return torch.from_numpy(signs * idct(values.numpy()[:, None] * Z, norm="ortho", axis=0))

    size = len(values)
    how = {"shape": (size, size), "dtype": torch.float64, "self_adjoint": True}
    return aslinearoperator(product, **how)


def test_xnystrace_is_more_exact_than_xtrace_and_refuses_what_is_not_semidefinite():
    A = matrix("decaying")
    ours, theirs = (draws(A, method, 30, 50)[1].square().mean() for method in METHODS[:1:-1])
    assert ours < theirs / 2
    with pytest.raises(SkerchError, match="xtrace and xdiag take any symmetric one"):
        trace(matrix("indefinite"), method="xnystrace", num_matvecs=40, seed=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_matvecs", [2, 3, 5, 30, 45, 300])
def test_spends_no_more_products_than_are_given(method, num_matvecs):
    A = matrix("decaying", 20)
    found = trace(A, num_matvecs=num_matvecs, method=method, seed=0)
    assert found.products <= num_matvecs
    assert abs(found.estimate - float(A.trace())) <= found.interval.error
    if method != "hutchinson" and num_matvecs == 300:
        assert found.estimate == pytest.approx(float(A.trace()), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_trace_of_zero_is_zero(method):
    found = trace(torch.zeros(9, 9), num_matvecs=8, method=method, seed=0)
    assert (found.estimate, found.interval.error) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_estimators_stop_at_a_tolerance(method):
    A = matrix("decaying")
    how = {"num_matvecs": 90, "method": method}
    found = [trace(A, tol=0.5, seed=seed, **how) for seed in range(20)]
    assert all(each.interval.error <= 0.5 * abs(each.estimate) for each in found)
    assert max(each.products for each in found) < 90
    assert trace(A, tol=1e-12, seed=0, **how).products == 90


@pytest.mark.parametrize("method", METHODS)
def test_known_eigenpairs_leave_little_to_estimate_and_no_bias(method):
    A = matrix("polynomial")
    pairs = lanczos(A, k=10, tol=1e-10, seed=0)
    values, vectors = pairs.eigenvalues, pairs.eigenvectors.T
    how = {"num_matvecs": 20, "method": method}
    _, plain = draws(A, count=100, **how)
    for known in (pairs, (values, vectors), seigh(A, outer=10, seed=1)):
        found, off = draws(A, count=100, deflate=known, **how)
        held = sum(abs(x) <= r.interval.error for x, r in zip(off.tolist(), found, strict=True))
        assert held >= 93
        assert float(off.square().mean()) < 0.3 * float(plain.square().mean())
        assert abs(float(off.mean())) <= 3.5 * float(off.std()) / 10


@pytest.mark.parametrize("method", METHODS[:3])
def test_there_is_no_bias_whatever_the_eigenpairs_are_that_are_taken_for_known(method):
    A = matrix("indefinite")
    wrong = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    deflate = (torch.tensor([1.0, 0.5, -0.3]), torch.linalg.qr(wrong).Q * 1.1)
    found, off = draws(A, method, 30, 200, deflate=deflate)
    assert abs(float(off.mean())) <= 3.5 * float(off.std()) / math.sqrt(200)
    held = sum(abs(x) <= r.interval.error for x, r in zip(off.tolist(), found, strict=True))
    assert held >= 186


@pytest.mark.parametrize("num_matvecs", [97, 99, 100])
def test_intervals_of_xnystrace_hold_where_test_vectors_are_nearly_n(num_matvecs):
    found, off = draws(matrix("flat"), "xnystrace", num_matvecs, 100)
    assert sum(abs(x) <= f.interval.error for x, f in zip(off.tolist(), found, strict=True)) >= 92
    assert all(each.products <= num_matvecs for each in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["xtrace", "xnystrace"])
def test_intervals_include_rounding_where_the_sketch_is_of_higher_rank(method, dtype):
    A = matrix(0.6 ** torch.arange(120.0)).to(dtype)
    for seed in range(20):
        found = trace(A, num_matvecs=100, method=method, seed=seed)
        assert abs(found.estimate - float(A.double().trace())) <= found.interval.error
        assert found.interval.error <= 1e-2 * found.estimate


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_xnystrace_takes_what_is_left_by_all_eigenpairs_for_rounding(dtype):
    A = matrix("rank one").to(dtype)
    known = torch.linalg.eigh(A)
    found = trace(A, method="xnystrace", deflate=known, num_matvecs=20, seed=0)
    assert abs(found.estimate - 5) <= found.interval.error <= 0.1


def test_deflated_xnystrace_refuses_what_is_left_indefinite():
    A = matrix("decaying")
    V = torch.linalg.eigh(A).eigenvectors[:, -1:]
    with pytest.raises(SkerchError, match="what deflate leaves"):
        trace(A, method="xnystrace", deflate=(torch.tensor([3.0]), V), num_matvecs=40, seed=0)


def test_eigenpairs_of_another_shape_are_refused():
    for deflate, error, message in [
        (
            (torch.ones(2), torch.ones(9, 3)),
            ShapeError,
            r"\(2,\) and eigenvectors of shape \(9, 3\)",
        ),
        (torch.ones(3), SkerchError, "must be"),
    ]:
        with pytest.raises(error, match=message):
            trace(torch.eye(9), deflate=deflate)


@pytest.mark.parametrize("method", ["xtrace", "xnystrace"])
def test_a_single_test_vector_tells_all_of_one_row_and_no_error_of_more(method):
    exact = trace(torch.tensor([[3.0]]), method=method, seed=0).interval
    assert abs(exact.value - 3) <= exact.error <= 1e-4
    least = 2 if method == "xtrace" else 1
    assert str(trace(torch.eye(9), num_matvecs=least, method=method).interval) == "9.0 ± inf"


def test_an_operator_of_no_rows_is_refused():
    with pytest.raises(ShapeError, match="hutchinson needs an operator of one row"):
        trace(torch.zeros(0, 0), method="hutchinson")


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_is_the_same_estimate_in_any_blocks_and_none_is_another(method):
    A = matrix("decaying")
    first, again = (trace(A, method=method, seed=7, num_matvecs=31) for _ in range(2))
    assert first.estimate == again.estimate
    by_blocks = trace(A, method=method, seed=7, num_matvecs=31, block_size=4)
    assert by_blocks.estimate == pytest.approx(first.estimate, rel=1e-9)
    assert trace(A, method=method).estimate != trace(A, method=method).estimate


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_intervals_include_rounding(method, dtype):
    A = matrix(torch.linspace(1, 2, 8), 8)
    found = trace(A.to(dtype), method=method, seed=0, num_matvecs=16)
    assert abs(found.estimate - float(A.to(dtype).double().trace())) <= found.interval.error


def test_gaussian_and_sign_vectors_and_no_others():
    A = matrix("decaying")
    for distribution in ("gaussian", "rademacher"):
        found = hutchinson(A, num_samples=300, distribution=distribution, seed=0)
        assert abs(found.estimate - float(A.trace())) < found.interval.error
        assert found.samples.shape == (300,)
        assert found.samples.mean() == pytest.approx(found.estimate)
    with pytest.raises(SkerchError, match="there are rademacher, gaussian"):
        hutchinson(A, distribution="uniform")
    with pytest.raises(SkerchError, match=r"there are hutchinson, hutch\+\+, xtrace, xnystrace"):
        trace(A, method="exact")
    for count in (0, -3):
        with pytest.raises(SkerchError, match="num_matvecs must be at least 1"):
            trace(A, num_matvecs=count)


def test_signs_know_the_trace_of_a_diagonal_matrix_exactly():
    diagonal = torch.linspace(1, 5, 50).double()
    found = hutchinson(DiagonalOperator(diagonal), num_samples=5, seed=0)
    assert found.estimate == pytest.approx(float(diagonal.sum()), rel=1e-12)
    assert found.interval.error < 1e-5 * found.estimate


def test_memory_of_hutch_plus_plus_is_its_sketch_and_a_few_blocks():
    n, sketch = 1_000_000, 40
    diagonal = DiagonalOperator(torch.linspace(0.5, 1.5, n))
    hutch_plus_plus(DiagonalOperator(torch.ones(10)), seed=0)  # what libraries load once
    run = {"num_matvecs": 3 * sketch, "seed": 0, "block_size": 1}
    assert peak_bytes(lambda: hutch_plus_plus(diagonal, **run)) < 4 * n * (sketch + 25)
    run = {"num_samples": 20, "seed": 0, "block_size": 1}
    assert peak_bytes(lambda: hutchinson(diagonal, **run)) < 4 * n * 12
