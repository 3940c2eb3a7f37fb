"""Masks against orders written out by hand and by Python's own stable sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skerch.analysis.masks import magnitude_mask, magnitude_order, random_order
from skerch.errors import ShapeError, SkerchError


def test_order_goes_by_magnitude_whatever_the_sign():
    parameters = torch.tensor([0.5, -3.0, 0.0, 2.0, -0.25])
    assert magnitude_order(parameters).tolist() == [1, 3, 0, 4, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_go_by_index(dtype):
    values = np.random.default_rng(0).integers(-3, 4, size=5000)
    expected = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    assert magnitude_order(torch.tensor(values, dtype=dtype)).tolist() == expected


def test_masks_are_nested_and_hold_the_largest():
    parameters = torch.randn(200, generator=torch.Generator().manual_seed(0))
    for k in (0, 1, 7, 200):
        mask = magnitude_mask(parameters, k)
        kept = torch.zeros(200, dtype=torch.bool).index_fill(0, mask, True)
        assert int(kept.sum()) == k
        assert 0 in (k, 200 - k) or parameters[kept].abs().min() > parameters[~kept].abs().max()
        assert torch.equal(mask, magnitude_mask(parameters, 200)[:k])


def test_mask_larger_than_the_network_is_refused():
    with pytest.raises(SkerchError, match="holds 0 to 3, not 4"):
        magnitude_mask(torch.ones(3), 4)


def test_parameters_without_an_order_are_refused():
    with pytest.raises(SkerchError, match=r"2 of 4 .* first at index 1"):
        magnitude_order(torch.tensor([1.0, float("nan"), 2.0, float("inf")]))
    with pytest.raises(ShapeError, match=r"\(2, 3\)"):
        magnitude_order(torch.zeros(2, 3))


def test_random_orders_are_permutations_fixed_by_seed_and_index():
    orders = [random_order(50, seed, index) for seed in (0, 1) for index in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(orders[1], random_order(50, 0, 1))


def test_random_orders_are_uniform():
    firsts = torch.stack([random_order(5, 0, index)[0] for index in range(4000)])
    share = firsts.bincount(minlength=5) / 4000
    assert (share - 0.2).abs().max() < 5 * (0.2 * 0.8 / 4000) ** 0.5
