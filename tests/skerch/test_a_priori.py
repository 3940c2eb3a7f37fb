import math

import pytest

from skerch import seigh, synthmat
from skerch.a_priori import expected_residual, sketch_sizes
from skerch.errors import ShapeError, SkerchError


def _by_search(shape, budget, sym):
    """The definition: of all sizes that fit, the largest outer and then the largest inner."""
    per_outer = shape[0] if sym else sum(shape)
    return max(
        (outer, inner)
        for inner in range(2, min(shape) + 1)
        for outer in range(1, inner // 2 + 1)
        if outer * per_outer + inner**2 <= budget
    )


@pytest.mark.parametrize(
    ("shape", "sym"), [((9, 14), False), ((14, 9), False), ((2, 50), False), ((13, 13), True)]
)
def test_sizes_are_the_best_that_fit_for_every_budget(shape, sym):
    least = 4 + (shape[0] if sym else sum(shape))
    for budget in range(least, 500):
        assert sketch_sizes(shape, budget, sym=sym) == _by_search(shape, budget, sym)


def test_sizes_stay_exact_where_a_float_root_would_not():
    n, outer = 10**9, 10**8
    budget = outer * n + (2 * outer) ** 2
    assert sketch_sizes((n, n), budget, sym=True) == (outer, 2 * outer)
    assert sketch_sizes((n, n), budget - 1, sym=True)[0] == outer - 1


def test_too_small_a_budget_is_answered_with_the_least_that_works():
    with pytest.raises(
        SkerchError, match=r"budget of 303 .* \(100, 200\).*least that works is 304"
    ):
        sketch_sizes((100, 200), 303)
    assert sketch_sizes((100, 200), 304) == (1, 2)
    with pytest.raises(SkerchError, match="least that works is 104"):
        sketch_sizes((100, 100), 0, sym=True)
    assert sketch_sizes((100, 100), 104, sym=True) == (1, 2)


def test_impossible_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"\(1, 9\) is too small"):
        sketch_sizes((1, 9), 100)
    with pytest.raises(ShapeError, match=r"\(8, 9\) is not square"):
        sketch_sizes((8, 9), 100, sym=True)


@pytest.mark.parametrize(("each", "rounds"), [(1.25, 4), (1.4, 2), (1.75, 3), (2, 1), (2, 5)])
def test_the_expected_residual_is_about_that_of_another_spectrum(each, rounds):
    k, spectrum = 60, synthmat.polynomial_decay(500, 1, 1)
    H, _ = synthmat.symmetric(spectrum, seed=0, signs="alternate")
    pairs = seigh(H, outer=k, inner=round(each * k), rounds=rounds)
    W, values = pairs.eigenvectors, pairs.eigenvalues
    found = float((H - (W * values) @ W.T).norm() / spectrum[k:].norm())
    expected = expected_residual(k, round(each * k), rounds)
    assert abs(math.log((found - 1) / (expected - 1))) < math.log(1.6)


def test_nothing_is_expected_where_nothing_was_measured():
    assert expected_residual(100, 120, 2) is None
    assert expected_residual(100, 300, 40) == expected_residual(100, 200, 20)
