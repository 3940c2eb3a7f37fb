"""Figures by what their artists hold: the data drawn is the data given."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skerch.analysis.figures import (
    eigenvalue_panel,
    hessian_figure,
    overlap_panel,
    scree_panel,
    training_figure,
)
from skerch.analysis.overlap import OverlapResult, overlap
from skerch.analysis.results import ExactResults, HessianResults
from skerch.errors import SkerchError

EIGENVALUES = torch.tensor([9.0, -4.0, 2.0, 0.5, -0.25, 0.0], dtype=torch.float64)
RESIDUAL = torch.tensor([1.0, 0.4, 0.3, 0.2, 0.1, 0.05, 0.04], dtype=torch.float64)


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


@pytest.fixture
def result() -> OverlapResult:
    generator = torch.Generator().manual_seed(0)
    W, _ = torch.linalg.qr(torch.randn(40, 6, generator=generator, dtype=torch.float64))
    return overlap(W, torch.randn(40, generator=generator))


def found(eigenvalues, residual, result) -> HessianResults:
    """What the analysis of a Hessian of these eigenpairs finds."""
    return HessianResults(
        parameters=40,
        eigenvalues=eigenvalues.tolist(),
        residual=residual.tolist(),
        residual_bounds=[residual.tolist()] * 2,
        scree_bounds=[(0.9 * residual / residual[0]).square().tolist(), [1.0] * len(residual)],
        **{name: values.tolist() for name, values in vars(result).items()},
    )


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """The x and y data of the labelled lines."""
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
    }


def edges(axes: Axes) -> tuple[dict[float, float], dict[float, float]]:
    """The lower and upper edge, by x, of the one shaded area."""
    (area,) = axes.collections
    (path,) = area.get_paths()
    by_x: dict[float, list[float]] = {}
    for x, y in path.vertices:
        by_x.setdefault(float(x), []).append(float(y))
    return {x: min(y) for x, y in by_x.items()}, {x: max(y) for x, y in by_x.items()}


def test_eigenvalues_are_drawn_by_magnitude_with_their_signs_apart(axes):
    eigenvalue_panel(axes, EIGENVALUES)
    drawn = lines(axes)
    assert drawn == {
        "positive": ([1, 3, 4], [9.0, 2.0, 0.5]),
        "negative": ([2, 5], [4.0, 0.25]),
    }
    positive, negative = axes.get_lines()
    assert positive.get_marker() != negative.get_marker()
    assert positive.get_color() != negative.get_color()
    assert axes.get_yscale() == "log"


def test_exact_eigenvalues_are_laid_over_up_to_the_same_rank(axes):
    exact = torch.arange(20.0, 0.0, -1.0) * torch.tensor([1.0, -1.0]).repeat(10)
    eigenvalue_panel(axes, EIGENVALUES, exact)
    assert lines(axes)["exact"] == ([1, 2, 3, 4, 5, 6], [20.0, 19.0, 18.0, 17.0, 16.0, 15.0])


def test_eigenvalues_are_shaded_as_far_as_they_may_be_off(axes):
    eigenvalue_panel(axes, [9.0, -4.0], bound=[1.0, 0.5])
    assert edges(axes) == ({1: 8.0, 2: 3.5}, {1: 10.0, 2: 4.5})


def test_a_definite_spectrum_has_no_negative_entry(axes):
    eigenvalue_panel(axes, EIGENVALUES.abs())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["positive"]


def test_scree_is_drawn_from_rank_zero_within_its_bounds(axes):
    scree_panel(axes, RESIDUAL, 0.9 * RESIDUAL, 1.5 * RESIDUAL)
    assert lines(axes)["sketched, estimate"] == (list(range(7)), RESIDUAL.tolist())
    lower, upper = edges(axes)
    np.testing.assert_allclose([lower[r] for r in range(7)], 0.9 * RESIDUAL)
    np.testing.assert_allclose([upper[r] for r in range(7)], 1.5 * RESIDUAL)


def test_a_lower_bound_of_zero_leaves_the_residual_in_view(axes):
    scree_panel(axes, RESIDUAL, torch.zeros(7), RESIDUAL)
    bottom, top = axes.get_ylim()
    assert 0.01 < bottom < float(RESIDUAL.min())
    assert top >= 1


@pytest.mark.parametrize(("log_x", "scale"), [(False, "linear"), (True, "log")])
def test_overlap_is_drawn_beside_chance_and_random_masks(axes, result, log_x, scale):
    overlap_panel(axes, result, log_x=log_x)
    drawn = lines(axes)
    assert drawn["magnitude mask"] == ([1, 2, 3, 4, 5, 6], result.overlap.tolist())
    assert drawn["chance, k / N"][1] == result.baseline.tolist()
    for edge, quantile in zip(edges(axes), result.quantiles, strict=True):
        np.testing.assert_allclose([edge[k] for k in result.grid.tolist()], quantile)
    assert axes.get_xscale() == scale


def test_the_overlap_is_shaded_where_its_error_is_known(axes, result):
    error = torch.tensor([0.1, 0.2, np.nan, 0.3, np.nan, np.nan], dtype=torch.float64)
    overlap_panel(axes, replace(result, overlap_error=error))
    _, shade = axes.collections
    drawn = np.concatenate([path.vertices for path in shade.get_paths()])
    assert sorted(set(drawn[:, 0])) == [1, 2, 4]
    assert drawn[:, 1].max() == pytest.approx(float((result.overlap + error).nan_to_num().max()))
    assert "gap not resolved" in shade.get_label()


def test_hessian_figure_has_the_three_panels_and_its_title(result, tmp_path):
    results = found(EIGENVALUES, 7 * RESIDUAL, result)
    figure = hessian_figure(results, "digits_mlp, step 300, test split")
    eigenvalues, scree, overlaps = figure.axes
    assert figure.get_suptitle() == "digits_mlp, step 300, test split"
    assert lines(eigenvalues)["positive"][1] == [9.0, 2.0, 0.5]
    np.testing.assert_allclose(lines(scree)["sketched, estimate"][1], RESIDUAL)
    lower, upper = edges(scree)
    np.testing.assert_allclose([lower[r] for r in range(7)], 0.9 * RESIDUAL)
    assert set(upper.values()) == {1.0}
    assert lines(overlaps)["magnitude mask"][1] == result.overlap.tolist()
    figure.savefig(tmp_path / "figure.png", dpi=50)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_exact_is_laid_over_in_each_panel_as_far_as_it_was_sketched(result):
    spectrum = torch.arange(40.0, 0.0, -1.0)
    residual, overlaps = torch.linspace(1, 0, 41), torch.linspace(0, 1, 40)
    exact = ExactResults(spectrum.tolist(), (3 * residual).tolist(), overlaps.tolist())
    drawn = hessian_figure(found(EIGENVALUES, RESIDUAL, result), "title", exact).axes
    assert not drawn[1].collections
    for axes, exact, first in zip(drawn, (spectrum, residual, overlaps), (1, 0, 1), strict=True):
        x, y = lines(axes)["exact"]
        assert x == list(range(first, 7))
        np.testing.assert_allclose(y, exact[: len(x)], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 100])
def test_indices_ranks_and_k_have_ticks_at_whole_numbers_only(k):
    generator = torch.Generator().manual_seed(0)
    W, _ = torch.linalg.qr(torch.randn(150, k, generator=generator, dtype=torch.float64))
    result = overlap(W, torch.rand(150, generator=generator), random_masks=0)
    for axes in hessian_figure(found(torch.ones(k), torch.ones(k + 1), result), "").axes:
        low, high = axes.get_xlim()
        shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert shown
        assert all(tick == round(tick) for tick in shown)


def test_training_figure_draws_every_split_where_it_was_recorded():
    log = [
        {"step": 0, "train": {"loss": 2.0, "accuracy": 0.1}, "test": {"loss": 2.5}},
        {"step": 50, "train": {"loss": 1.0}},
        {"step": 100, "train": {"loss": 0.5, "accuracy": 0.9}, "test": {"loss": 0.7}},
    ]
    loss, accuracy = training_figure(log).axes
    assert lines(loss) == {
        "train": ([0, 50, 100], [2.0, 1.0, 0.5]),
        "test": ([0, 100], [2.5, 0.7]),
    }
    assert lines(accuracy) == {"train": ([0, 100], [0.1, 0.9])}


def test_a_log_without_accuracies_has_one_panel_and_an_empty_one_is_refused():
    assert len(training_figure([{"step": 0, "train": {"loss": 2.0}}]).axes) == 1
    with pytest.raises(SkerchError, match="0 records"):
        training_figure([])


@pytest.mark.parametrize(
    "title", ["Trace", "digits_mlp\ntrace-fisher: xnystrace, 100 products, " * 2]
)
def test_a_title_lies_within_a_figure_of_one_panel(title):
    log = [{"step": 1, "train": {"loss": 0.5}}, {"step": 2, "train": {"loss": 0.3}}]
    figure = training_figure(log, title)
    figure.draw_without_rendering()
    extent, shown = figure._suptitle.get_window_extent(), figure.bbox
    assert shown.x0 <= extent.x0
    assert extent.x1 <= shown.x1


def test_figures_leave_pyplot_alone():
    program = "import sys, skerch.analysis.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
