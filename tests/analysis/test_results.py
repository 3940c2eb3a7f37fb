"""What is printed of results has no digit that is not known."""

from __future__ import annotations

import pytest

from skerch.analysis.results import HessianResults


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
