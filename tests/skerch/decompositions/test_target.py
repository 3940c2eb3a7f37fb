"""Rounds until a target is reached, against exact spectra."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from skerch import synthmat
from skerch.decompositions.recoveries import default_inner
from skerch.decompositions.seigh import seigh
from skerch.decompositions.target import Target, judged
from skerch.errors import SkerchError

N = 600
SPECTRA = {
    "polynomial": synthmat.polynomial_decay(N, 1, 1),
    "slow polynomial": synthmat.polynomial_decay(N, 1, 0.5),
    "exponential": synthmat.exponential_decay(N, 1, 0.02),
}


@pytest.fixture(scope="module", params=SPECTRA)
def exact(request):
    """H and its eigenvalues by decreasing magnitude."""
    H, values = synthmat.symmetric(SPECTRA[request.param], seed=1, signs="random")
    return H, values[values.abs().argsort(descending=True)]


def over_best(exact, found):
    H, values = exact
    W, lam = found.eigenvectors.double(), found.eigenvalues
    return float(torch.linalg.norm(H - (W * lam) @ W.T) / torch.linalg.norm(values[len(lam) :]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("asked", [1.12, 1.05, 1.02])
def test_a_residual_that_is_reached_is_true_and_took_fewer_products(exact, asked, dtype):
    for outer in (10, 40):
        for seed in range(3):
            target = {"residual": asked}
            found = seigh(exact[0].to(dtype), outer=outer, target=target, seed=seed)
            assert 1 <= over_best(exact, found) < asked
            assert found.products < default_inner(outer, bound=True)


@pytest.mark.parametrize("asked", [0.1, 1e-3])
def test_pairs_that_are_reached_are_as_good_relative_to_each_eigenvalue(exact, asked):
    H, _ = exact
    found = seigh(H, outer=20, target={"pairs": asked})
    W, lam = found.eigenvectors, found.eigenvalues
    residuals = torch.linalg.norm(H @ W - W * lam, dim=0) / lam.abs()
    assert residuals.max() < asked
    assert found.products < default_inner(20, bound=True)


def test_a_sharper_target_takes_more_products(exact):
    spent = [seigh(exact[0], outer=20, target={"residual": c}).products for c in (1.3, 1.05, 1.001)]
    assert spent == sorted(spent)
    assert spent[0] < spent[-1]


def test_what_is_found_is_what_so_many_products_find_without_a_target(exact):
    """The rounds are those of the plan; the last of a plan takes no fresh vectors."""
    found = seigh(exact[0], outer=20, target={"residual": 1.05})
    same = seigh(exact[0], outer=20, inner=found.products, rounds=found.products // 4)
    torch.testing.assert_close(found.eigenvalues, same.eigenvalues, rtol=1e-12, atol=0)


def test_a_target_that_is_not_reached_is_said_and_all_is_spent(exact):
    with pytest.warns(UserWarning, match=r"is not reached within inner=60 matvecs; raise inner"):
        found = seigh(exact[0], outer=20, inner=60, target={"pairs": 1e-9})
    assert found.products == 60


def test_a_matrix_of_low_rank_is_done_once_nothing_is_left():
    spectrum = torch.cat([torch.linspace(2, 1, 30), torch.zeros(N - 30)]).double()
    H, _ = synthmat.symmetric(spectrum, seed=0)
    found = seigh(H.float(), outer=40, target={"residual": 1.05})
    assert len(found.eigenvalues) == 30
    assert found.products < default_inner(40, bound=True)


def test_a_bound_beyond_the_dimension_is_the_dimension():
    H, _ = synthmat.symmetric(synthmat.polynomial_decay(60, 1, 1), seed=0, signs="random")
    found = seigh(H, outer=20, target={"residual": 1.001})
    assert found.products <= 60


def test_a_matrix_too_small_to_be_judged_is_decomposed_as_a_whole():
    H, values = synthmat.symmetric(synthmat.polynomial_decay(30, 1, 1), seed=0, signs="random")
    found = seigh(H, outer=20, target={"pairs": 1e-9})
    assert found.products == 30
    torch.testing.assert_close(found.eigenvalues, values[:20])


def test_rounds_are_judged_where_it_pays():
    columns = [4] * 40
    due = [4 * number for number in sorted(judged(columns, 20))]
    assert due[0] == 48  # of 36, 32 are in X', which is 20 and 10 or more; 45 is a quarter more
    assert all(b >= 1.1 * a for a, b in pairwise(due))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({}, "one key"),
        ({"residual": 1.05, "pairs": 1e-3}, "one key"),
        ({"error": 1e-3}, "one key"),
        ({"residual": 1.0}, "above 1"),
        ({"residual": math.nan}, "above 1"),
        ({"pairs": 0.0}, "between 0 and 1"),
        ({"pairs": 1.0}, "between 0 and 1"),
        (1.05, "one key"),
    ],
)
def test_what_is_no_target_is_refused(target, words):
    with pytest.raises(SkerchError, match=words):
        Target.of(target)


@pytest.mark.parametrize(
    "how", [{"rounds": 2}, {"inner": 45}, {"recovery": "oversampled"}, {"rounds": [100, 10]}]
)
def test_rounds_that_cannot_be_judged_are_refused(how):
    words = "for recovery nystrom, not" if "recovery" in how else "cannot be judged before the last"
    with pytest.raises(SkerchError, match=words):
        seigh(torch.eye(N), outer=40, target={"residual": 1.05}, **how)
