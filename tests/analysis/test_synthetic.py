"""The study of random subspaces: its draws against dense ones, its means against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from skerch.analysis.figures import METRIC_LOOKS, metrics_figure
from skerch.analysis.grassmann import METRICS
from skerch.analysis.synthetic import PAIRS, random_angles, shared_angles, study
from skerch.errors import SkerchError

DRAWS = 400


def within(values, expected, errors=4):
    """Whether a mean is as expected, within so many standard errors."""
    error = float(values.std()) / len(values) ** 0.5
    return float(values.mean()) == pytest.approx(expected, abs=errors * error)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("n", "k"), [(40, 4), (20, 10), (10, 8)])
def test_random_subspaces_have_the_expectations_of_the_closed_forms(pair, n, k):
    angles = random_angles(pair, n, k, DRAWS, seed=1)
    value = {name: metric.value(angles) for name, metric in METRICS.items()}
    assert within(value["overlap"], k / n)
    assert within(value["projection_frobenius"].square(), k * (1 - k / n))
    expected = {name: m.baseline(n, k, k) for name, m in METRICS.items() if m.baseline}
    assert expected["overlap"] == k / n
    assert expected["projection_frobenius"] ** 2 == pytest.approx(k * (1 - k / n))
    nested = math.cos(expected["fubini_study"]) ** 2
    assert nested == pytest.approx(1 / math.comb(n, k), rel=1e-6)


def test_the_mean_squared_cosine_of_fubini_study_is_how_likely_masks_are_nested():
    for pair in PAIRS:
        cosine = METRICS["fubini_study"].value(random_angles(pair, 5, 2, 4000, seed=0)).cos()
        assert within(cosine.square(), 1 / 10)
    assert math.cos(METRICS["fubini_study"].baseline(6, 2, 4)) ** 2 == pytest.approx(6 / 15)


@pytest.mark.parametrize(("n", "k"), [(12, 3), (12, 8)])
def test_orthonormal_matrices_and_masks_are_drawn_as_dense_ones(n, k):
    generator = np.random.default_rng(0)
    dense = []
    for _ in range(DRAWS):
        Q = np.linalg.qr(generator.standard_normal((n, k))).Q
        M = np.eye(n)[:, generator.choice(n, k, replace=False)]
        dense.append(scipy.linalg.subspace_angles(Q, M)[::-1])
    for pair in ("O-O", "O-B"):
        found = random_angles(pair, n, k, DRAWS, seed=2).angles.numpy()
        for i in range(max(0, 2 * k - n), k):  # the others are 0
            assert scipy.stats.ks_2samp(found[:, i], np.array(dense)[:, i]).pvalue > 1e-3


def test_shared_directions_have_angles_of_0_and_the_others_are_as_random_ones():
    angles = shared_angles(60, 10, 4, DRAWS, seed=0)
    assert not angles.angles[:, :4].any()
    assert within(METRICS["overlap"].value(angles), (4 + 6 * 6 / 56) / 10)
    assert not shared_angles(60, 10, 10, 2, seed=0).angles.any()


@pytest.fixture(scope="module")
def rows():
    return study((400, 40), (0.5, 0.1), draws=40)


def test_overlap_has_the_baseline_k_over_n_and_the_spectral_norms_are_near_their_maximum(rows):
    for row in rows:
        if row.shared or row.k / row.n > 0.1:
            continue
        if row.metric == "overlap":
            assert abs(row.mean - row.k / row.n) < 4 * row.standard_error
        elif row.metric != "iou":
            assert row.median > 0.79 * row.greatest
        if row.metric in ("chordal_2", "projection_2", "fubini_study") and row.n == 400:
            assert row.median > 0.97 * row.greatest
        assert row.low <= row.median <= row.high <= row.greatest * (1 + 1e-15)


def test_overlap_follows_shared_directions_and_the_spectral_norms_do_not(rows):
    series = {
        name: [row.median / row.greatest for row in rows if row.shared and row.metric == name]
        for name in METRICS
    }
    assert len(series["overlap"]) == 7
    assert all(np.diff(series["overlap"]) > 0.02)
    for name in ("chordal_2", "projection_2"):
        assert min(series[name][:-1]) > 0.9
        assert series[name][-1] == 0


def test_the_figure_has_a_line_a_metric_in_each_panel_with_the_medians(rows):
    panels = metrics_figure(rows).axes
    assert METRIC_LOOKS.keys() == METRICS.keys()
    places = [{0.1, 0.5}, {0.1, 0.5}, {40, 400}, {row.shared / row.k for row in rows if row.shared}]
    for axes, x in zip(panels, places, strict=True):
        labels = {line.get_label(): line for line in axes.get_lines()}
        assert METRICS.keys() <= labels.keys()
        assert list(labels["overlap"].get_xdata()) == sorted(x)
    (line,) = (line for line in panels[2].get_lines() if line.get_label() == "geodesic")
    of = [row for row in rows if (row.pair, row.metric, row.k / row.n) == ("O-O", "geodesic", 0.1)]
    assert list(line.get_ydata()) == [row.median / row.greatest for row in of]


def test_rows_are_of_the_seed_and_more_draws_go_on():
    first, again, other = (study((20,), (0.2,), draws=3, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    few, more = (random_angles("O-B", 20, 4, draws, seed=0).cosines for draws in (3, 5))
    assert more[:3].equal(few)


@pytest.mark.parametrize(
    ("dimensions", "ratios", "draws", "message"),
    [
        ((1, 20), (0.1,), 5, r"2 or more, not \[1, 20\]"),
        ((20,), (0.0,), 5, r"above 0 and at most 1, not \[0.0\]"),
        ((20,), (float("nan"),), 5, "above 0 and at most 1"),
        ((20,), (0.1,), 1, "2 or more draws, not 1"),
    ],
)
def test_what_cannot_be_studied_is_refused(dimensions, ratios, draws, message):
    with pytest.raises(SkerchError, match=message):
        study(dimensions, ratios, draws=draws)
