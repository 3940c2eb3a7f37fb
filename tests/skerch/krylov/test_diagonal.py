"""Diagonals, norms of rows and the Frobenius norm, against the matrix itself."""

from __future__ import annotations

import pytest
import torch

from skerch.errors import SkerchError
from skerch.krylov import diagonal, frobenius_norm, lanczos, row_norms
from tests.skerch.krylov.cases import SPECTRA, matrix

METHODS = ("hutchinson", "xdiag", "xnysdiag")


def errors(estimate, true, count=100):
    """Errors of each entry, (count, n)."""
    return torch.stack([estimate(seed).estimate for seed in range(count)]) - true


def rms(off):
    return float(off.square().mean().sqrt())


def unbiased(off):
    z = off.mean(0) / (off.std(0) / len(off) ** 0.5 + 1e-9)
    return float(z.square().mean()) < 1.6 and abs(float(z.mean())) < 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_diagonal_has_no_bias(spectrum, method):
    if spectrum == "indefinite" and method == "xnysdiag":
        return
    A = matrix(spectrum, 60)
    off = errors(lambda seed: diagonal(A, num_matvecs=20, method=method, seed=seed), A.diagonal())
    assert unbiased(off)


def test_sketches_pay_where_the_spectrum_decays():
    A = matrix("decaying")
    plain, xdiag, xnysdiag = (
        rms(errors(lambda s, m=m: diagonal(A, num_matvecs=60, method=m, seed=s), A.diagonal(), 20))
        for m in METHODS
    )
    assert xdiag < plain / 3
    assert xnysdiag < xdiag / 2


@pytest.mark.parametrize(
    ("spectrum", "method"), [("rank one", "xdiag"), ("rank one", "xnysdiag"), ("flat", "xdiag")]
)
def test_low_rank_and_whole_matrices_are_exact(spectrum, method):
    A = matrix(spectrum, 30)
    found = diagonal(A, num_matvecs=60, method=method, seed=0)
    assert torch.allclose(found.estimate, A.diagonal(), atol=1e-6)


def test_stderr_of_signs_is_their_error():
    A = matrix("indefinite")
    found = [diagonal(A, num_matvecs=30, method="hutchinson", seed=seed) for seed in range(100)]
    off = torch.stack([each.estimate for each in found]) - A.diagonal()
    said = torch.stack([each.stderr for each in found]).square().mean(0)
    assert torch.allclose(said.mean(), off.square().mean(), rtol=0.1)


@pytest.mark.parametrize(("scale", "spread"), [(1e-25, 1.0), (1.0, 1e-5)])
def test_stderr_in_float32_is_neither_lost_in_small_entries_nor_in_large_ones(scale, spread):
    A = scale * (torch.eye(40).double() + spread * matrix("flat", 40))
    exact, single = (
        diagonal(B, num_matvecs=12, method="hutchinson", seed=0).stderr for B in (A, A.float())
    )
    assert torch.allclose(single.double() / scale, exact / scale, rtol=0.1, atol=0.1 * spread)
    assert (single > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_known_eigenpairs_leave_little_of_the_diagonal_and_no_bias(method):
    A = matrix("polynomial")
    pairs = lanczos(A, k=10, tol=1e-10, seed=0)
    how = {"num_matvecs": 12, "method": method}
    plain = errors(lambda seed: diagonal(A, seed=seed, **how), A.diagonal())
    off = errors(lambda seed: diagonal(A, seed=seed, deflate=pairs, **how), A.diagonal())
    assert unbiased(off)
    assert rms(off) < rms(plain) / 2


def test_norms_of_rows_have_no_bias_whatever_pairs_are_taken_for_known():
    A = matrix("polynomial")
    true = torch.linalg.norm(A, dim=1)
    plain = errors(lambda seed: row_norms(A, num_matvecs=60, seed=seed), true)
    exact = lanczos(A, k=5, tol=1e-10, seed=0)
    wrong = (torch.tensor([1.0]), torch.nn.functional.normalize(A[:, :1], dim=0))
    for known, share in ((exact, 0.5), (wrong, 3)):
        off = errors(lambda s, k=known: row_norms(A, num_matvecs=60, seed=s, deflate=k), true)
        assert rms(off) < share * rms(plain)
        assert float((off.mean(0) / true).abs().max()) < 0.1


def test_estimators_of_entries_stop_at_a_tolerance():
    A = matrix("decaying")
    for estimate in (
        lambda **how: diagonal(A, method="hutchinson", **how),
        lambda **how: row_norms(A, **how),
    ):
        found = estimate(num_matvecs=2000, tol=0.1, seed=0)
        assert found.products < 2000
    with pytest.raises(SkerchError, match="hutchinson does"):
        diagonal(A, tol=0.1)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("known", [0, 5])
def test_intervals_of_the_frobenius_norm_hold_95_in_100(spectrum, known):
    A = matrix(spectrum)
    values, vectors = torch.linalg.eigh(A)
    top = values.abs().argsort(descending=True)[:known]
    noisy = torch.linalg.qr(vectors[:, top] + 0.01 * vectors[:, (top + 7) % 100]).Q
    found = [
        frobenius_norm(A, num_matvecs=12, seed=seed, deflate=(values[top], noisy))
        for seed in range(200)
    ]
    true = float(torch.linalg.norm(A))
    assert sum(abs(each.value - true) <= each.error for each in found) >= 186


@pytest.mark.parametrize("method", METHODS)
def test_zero_has_a_zero_diagonal_and_seeds_are_kept(method):
    assert diagonal(torch.zeros(9, 9), method=method, seed=0).estimate.tolist() == [0] * 9
    A = matrix("decaying")
    first, again, blocks = (
        diagonal(A, method=method, seed=3, block_size=size).estimate for size in (None, None, 7)
    )
    assert torch.equal(first, again)
    assert torch.allclose(first, blocks, atol=1e-6)
    assert diagonal(A.bfloat16(), method="hutchinson", seed=0).estimate.dtype == torch.float32


def test_unknown_methods_and_too_few_products_are_refused():
    for how, message in [
        ({"method": "exact"}, "there are hutchinson, xdiag, xnysdiag"),
        ({"num_matvecs": 1}, "at least 2"),
        ({"num_matvecs": 0, "method": "hutchinson"}, "at least 1"),
    ]:
        with pytest.raises(SkerchError, match=message):
            diagonal(torch.eye(3), **how)
    with pytest.raises(SkerchError, match="at least num_matvecs=2"):
        frobenius_norm(torch.eye(3), num_matvecs=1)
