"""Masks against orders written out by hand and by Python's own stable sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skerch.analysis.masks import (
    given_mask,
    layer_order,
    magnitude_mask,
    magnitude_order,
    random_mask,
    ties,
)
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


def test_a_mask_that_cuts_through_equal_magnitudes_counts_them():
    weights = torch.tensor([5.0, 1.0, -1.0, 2.0, 1.0, 0.0, -2.0, 1.0])
    within, alike = ties(weights, magnitude_mask(weights, 5)).tolist()
    assert within == [1, 1, 2, 1, 2]
    assert alike == [1, 2, 2, 4, 4]


@pytest.mark.parametrize("k", [0, 1, 40, 300])
def test_ties_are_those_that_counting_finds(k):
    magnitudes = np.random.default_rng(1).integers(0, 30, size=300)
    weights = torch.tensor(magnitudes * np.random.default_rng(2).choice([-1.0, 1.0], size=300))
    ranked = sorted(magnitudes, reverse=True)
    expected = [
        (ranked[:j].count(ranked[j - 1]), ranked.count(ranked[j - 1])) for j in range(1, k + 1)
    ]
    assert list(zip(*ties(weights, magnitude_mask(weights, k)).tolist(), strict=True)) == expected


def test_random_masks_are_subsets_fixed_by_seed_and_index():
    masks = [random_mask(50, 20, seed, index) for seed in (0, 1) for index in (0, 1)]
    for mask in masks:
        assert len(set(mask.tolist())) == 20
        assert set(mask.tolist()) <= set(range(50))
    assert len({tuple(mask.tolist()) for mask in masks}) == 4
    assert torch.equal(masks[1], random_mask(50, 20, 0, 1))


@pytest.mark.parametrize("n", [5, 20_000])  # NumPy draws from many in another way than from few
def test_random_masks_are_uniform_and_in_random_order(n):
    for place in (0, 2):
        drawn = torch.stack([random_mask(n, 3, 0, index)[place] for index in range(4000)])
        share = (drawn * 5 // n).bincount(minlength=5) / 4000
        assert (share - 0.2).abs().max() < 5 * (0.2 * 0.8 / 4000) ** 0.5


def test_layers_keep_the_same_fraction_of_their_largest_parameters():
    sizes, generator = [600, 30, 1, 369], np.random.default_rng(0)
    layers = [
        scale * generator.standard_normal(n) for n, scale in zip(sizes, (1, 2, 3, 4), strict=True)
    ]
    order = layer_order(torch.from_numpy(np.concatenate(layers)), sizes)
    assert sorted(order.tolist()) == list(range(1000))
    starts = np.cumsum([0, *sizes])
    for k in (0, 1, 17, 400, 999, 1000):
        mask = set(order[:k].tolist())
        for start, layer in zip(starts, layers, strict=False):
            kept = {i - start for i in mask if start <= i < start + len(layer)}
            largest = sorted(range(len(layer)), key=lambda i: -abs(layer[i]))[: len(kept)]
            assert kept == set(largest)
            share = k * len(layer) / 1000  # off by half of it, and by its part of all four halves
            assert abs(len(kept) - share) <= 0.5 + 2 * len(layer) / 1000


def test_layers_of_other_sizes_are_refused():
    with pytest.raises(ShapeError, match="10 parameters are not in layers of 9"):
        layer_order(torch.ones(10), [4, 5])


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([3, 0, 4]),
        torch.tensor([True, False, False, True, True]),
        torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0]]),
        torch.tensor([1, 0, 0, 1, 1], dtype=torch.uint8),
    ],
)
def test_a_mask_is_given_by_indices_or_by_0_and_1(values):
    assert given_mask(values, 5).tolist() == [0, 3, 4]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.tensor([0.0, 2.0]), "these are 2 values of torch.float32"),
        (torch.tensor([True, False]), "these are 2 values of torch.bool"),
        (torch.tensor([1, 2, 2]), "these 3 are 2 different ones from 1 to 2"),
        (torch.tensor([-1, 5]), "from -1 to 5"),
        (torch.zeros(5), "without parameters"),
        (torch.tensor([], dtype=torch.int64), "without parameters"),
    ],
)
def test_what_is_no_mask_is_refused(values, words):
    with pytest.raises(SkerchError, match=words):
        given_mask(values, 5)
