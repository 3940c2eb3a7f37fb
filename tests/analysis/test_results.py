"""What is printed of results has no digit that is not known."""

from __future__ import annotations

import pytest

from skerch.analysis.results import HessianResults
from skerch.estimate import Estimate


@pytest.mark.parametrize(
    ("value", "bound", "words"),
    [
        (7.53214, 2e-4, "7.532"),
        (7.53244, 9e-4, "7.53"),  # 7.532 would be off by 1.3 units, at worst
        (7.53214, 1e-9, "7.5321"),
        (-0.071322, 0.004, "-0.07"),
        (0.5, 1e-4, "0.5000"),
        (123.456, 0.3, "123"),
        (8.03, 0.9, "8"),
        (0.42, 0.6, "0.42 ± 0.6"),
        (0.0, 0.1, "0"),
    ],
)
def test_an_eigenvalue_has_the_digits_that_are_known(value, bound, words):
    empty = dict.fromkeys(
        ("residual", "residual_bounds", "scree_bounds", "overlap", "baseline", "deviation", "mask"),
        (),
    )
    results = HessianResults(10, [value], **empty, eigenvalue_bound=[bound])
    assert results.eigenvalue(0) == words
    assert HessianResults(10, [7.53214], **empty).eigenvalue(0) == "7.532"


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (41.234, 0.84, "41.23 ± 0.84"),
        (41.2, 0.84, "41.20 ± 0.84"),
        (-7.5321443, 2e-7, "-7.53214 ± 2e-07"),
        (0.4, 3, "0.40 ± 3"),
        (0, 0.53, "0 ± 0.53"),
        (5, 0, "5.00000 ± 0"),
        (7.53, float("inf"), "7.5 ± inf"),
    ],
)
def test_an_estimate_has_the_digits_down_to_its_error(value, error, words):
    assert str(Estimate(value, error)) == words


def test_an_end_of_the_spectrum_without_digits_has_its_bound():
    assert Estimate(0.0, 0.53).digits == "0 ± 0.53"
