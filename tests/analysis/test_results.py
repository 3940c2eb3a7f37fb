"""What is printed of results has no digit that is not known."""

from __future__ import annotations

import pytest
import torch

from skerch.analysis.results import DensityResults, HessianResults
from skerch.estimate import Estimate
from skerch.krylov import spectral_density


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


def test_shares_of_eigenvalues_hold_where_the_bound_is_amid_them():
    spectrum = torch.linspace(-1, 2, 200, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(200, 200, generator=torch.Generator().manual_seed(0)))[0]
    A = Q.double() @ torch.diag(spectrum) @ Q.double().T
    A, held = (A + A.T) / 2, []
    for seed in range(25):
        found = spectral_density(A, num_runs=3, lanczos_steps=6, seed=seed)
        nodes, weights = found.raw_eigenvalues.tolist(), found.raw_weights.tolist()
        results = DensityResults(200, [], [], found.sigma, nodes, weights, [], found.products)
        for low, high in ((-2.0, 0.05), (0.31, 3.0), (0.0, 1.0)):
            exact = float(((spectrum > low) & (spectrum <= high)).double().mean())
            share = results.share(low, high)
            held.append(abs(share.value - exact) <= share.error)
            assert share.error < 1
    assert sum(held) >= 0.95 * len(held)
