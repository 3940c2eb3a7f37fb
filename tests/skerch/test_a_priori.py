import pytest

from skerch.a_priori import sketch_sizes
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
