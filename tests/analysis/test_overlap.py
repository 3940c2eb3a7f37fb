"""Overlap against its definition, written out with explicit masks in NumPy."""

from __future__ import annotations

from itertools import combinations
from math import comb

import h5py
import numpy as np
import pytest
import torch

from skerch import aslinearoperator, seigh
from skerch.a_posteriori import eigenspace_sines
from skerch.analysis.masks import random_mask
from skerch.analysis.overlap import overlap, overlap_curve
from skerch.errors import ShapeError, SkerchError


def orthonormal(n: int, k: int, seed: int = 0) -> torch.Tensor:
    """A Haar-random orthonormal basis (n, k), float64."""
    gaussian = np.random.default_rng(seed).standard_normal((n, k))
    Q, R = np.linalg.qr(gaussian)
    return torch.from_numpy(Q * np.sign(np.diag(R)))


def by_definition(W: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """‖M_k W[:, :k]‖_F² / k with the diagonal 0/1 matrix M_k of the k largest parameters."""
    ranked = sorted(range(len(parameters)), key=lambda i: (-abs(parameters[i]), i))
    values = []
    for k in range(1, W.shape[1] + 1):
        mask = np.zeros(len(parameters))
        mask[ranked[:k]] = 1
        values.append(np.linalg.norm(mask[:, None] * W[:, :k]) ** 2 / k)
    return np.array(values)


@pytest.mark.parametrize("tied", [False, True])
def test_overlap_equals_its_definition_for_every_k(tied):
    W = orthonormal(300, 80)
    parameters = torch.randn(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if tied:
        parameters = parameters.round()
    result = overlap(W, parameters)
    np.testing.assert_allclose(
        result.overlap, by_definition(W.numpy(), parameters.numpy()), rtol=0, atol=1e-12
    )
    assert torch.equal(result.baseline, torch.arange(1.0, 81.0, dtype=torch.float64) / 300)
    assert torch.allclose(result.multiple * result.baseline, result.overlap)


def heavy_tailed(n: int, k: int) -> torch.Tensor:
    """An orthonormal basis (n, k) whose leverage is mostly on few of its rows."""
    weights = torch.exp(3 * torch.randn(n, 1, generator=torch.Generator().manual_seed(5)).double())
    return torch.linalg.qr(orthonormal(n, k) * weights).Q


def test_quantiles_are_those_of_the_masks_of_the_seed():
    W = heavy_tailed(60, 20)
    result = overlap(W, torch.rand(60), random_masks=30, seed=7)
    curves = []
    for index in range(30):
        ranks = np.zeros(60)
        ranks[random_mask(60, 20, 7, index)] = np.arange(20, 0, -1)
        curves.append(by_definition(W.numpy(), ranks))
    assert result.grid.tolist() == sorted(set(result.grid.tolist()))
    assert (result.grid[0], result.grid[-1]) == (1, 20)
    expected = np.quantile(np.array(curves)[:, result.grid - 1], [0.025, 0.975], axis=0)
    np.testing.assert_allclose(result.quantiles, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slab_rows", [7, 60])
def test_no_mask_has_a_larger_overlap_than_the_best(slab_rows):
    W = heavy_tailed(60, 20)
    result = overlap(W, torch.rand(60), slab_rows=slab_rows)
    leverage = W.square().cumsum(1).numpy()
    for k, best in zip(result.grid.tolist(), result.best.tolist(), strict=True):
        assert best == pytest.approx(np.sort(leverage[:, k - 1])[-k:].sum() / k, abs=1e-12)
    (leverage_of_all,) = overlap(W, W.square().sum(1)).overlap[-1:]
    assert float(leverage_of_all) == pytest.approx(float(result.best[-1]), abs=1e-12)
    assert (result.best > result.quantiles[1]).all()


@pytest.mark.parametrize("slab_rows", [7, 60])
def test_overlaps_with_other_masks_are_those_of_their_parameters(slab_rows):
    W = heavy_tailed(60, 20)
    orders = [torch.randperm(60, generator=torch.Generator().manual_seed(s)) for s in range(2)]
    given = [torch.arange(50), torch.tensor([2, 7, 31])]
    result = overlap(W, torch.rand(60), orders=orders, given=given, slab_rows=slab_rows)
    for place, k in enumerate(result.grid.tolist()):
        masks = [(order[:k], k) for order in orders] + [(m, min(k, len(m))) for m in given]
        expected = [np.linalg.norm(W[mask, :k].numpy()) ** 2 / size for mask, size in masks]
        np.testing.assert_allclose(result.others[:, place], expected, rtol=0, atol=1e-12)
    alone = overlap(W, torch.rand(60))
    assert torch.equal(result.quantiles, alone.quantiles)
    assert alone.others.shape == (0, len(alone.grid))


def test_one_random_mask_in_forty_is_beyond_each_quantile_however_skewed_chance_is():
    W = heavy_tailed(400, 30)
    result = overlap(W, torch.rand(400))
    leverage = W.square().cumsum(1).numpy()
    generator = np.random.default_rng(0)
    draws = np.array([generator.permutation(400)[:30] for _ in range(20_000)])
    share = 0.025 * 0.975
    error = 5 * (share / 1000 + share / 20_000) ** 0.5
    for k, (low, high) in zip(result.grid.tolist(), result.quantiles.T.tolist(), strict=True):
        chance = leverage[:, k - 1][draws[:, :k]].sum(1) / k
        assert abs((chance < low).mean() - 0.025) < error
        assert abs((chance > high).mean() - 0.025) < error
    normal = float(result.baseline[-1] - 1.96 * result.deviation[-1])
    assert (chance < normal).mean() < 0.01


@pytest.mark.parametrize("slab_rows", [1, 17, 299, 300, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slabs_and_hdf5_change_no_bit_of_the_curves(tmp_path, slab_rows, dtype):
    W, parameters = orthonormal(300, 40).to(dtype), torch.randn(300)
    whole = overlap(W, parameters, slab_rows=300)
    with h5py.File(tmp_path / "eigh.h5", "w") as file:
        dataset = file.create_dataset("eigenvectors", data=W.numpy(), chunks=(64, 40))
        streamed = overlap(dataset, parameters, slab_rows=slab_rows)
    assert torch.equal(streamed.overlap, whole.overlap)
    assert torch.equal(streamed.quantiles, whole.quantiles)
    assert torch.equal(streamed.mask, whole.mask)
    assert torch.allclose(streamed.deviation, whole.deviation, rtol=1e-10, atol=0)


def test_every_row_is_read_once_and_few_at_a_time():
    class Recorder:
        shape = (100, 10)
        reads: list[slice] = []  # noqa: RUF012

        def __getitem__(self, rows: slice) -> np.ndarray:
            self.reads.append(rows)
            return orthonormal(100, 10).numpy()[rows]

    recorder = Recorder()
    overlap(recorder, torch.rand(100), slab_rows=16)
    touched = [i for rows in recorder.reads for i in range(100)[rows]]
    assert touched == list(range(100))
    assert len(recorder.reads) == 7


def test_overlap_is_one_where_the_eigenvectors_span_the_mask_and_zero_off_it():
    parameters = torch.tensor([0.1, -9.0, 0.2, 8.0, 7.0, 0.3, 0.4])
    on, off = torch.zeros(7, 3).double(), torch.zeros(7, 3).double()
    on[[1, 3, 4]] = orthonormal(3, 3)
    off[[0, 2, 5]] = orthonormal(3, 3)
    assert overlap(on, parameters).overlap[-1] == pytest.approx(1, abs=1e-14)
    assert torch.equal(overlap(off, parameters).overlap, torch.zeros(3).double())
    nested = torch.eye(7).double()[:, [1, 3, 4]]
    assert torch.equal(overlap(nested, parameters).overlap, torch.ones(3).double())


def test_mean_over_haar_random_eigenvectors_is_k_over_n():
    parameters = torch.randn(40, generator=torch.Generator().manual_seed(0))
    results = [overlap(orthonormal(40, 10, s), parameters, random_masks=0) for s in range(600)]
    curves = torch.stack([result.overlap for result in results])
    error = curves.std(0) / 600**0.5
    assert ((curves.mean(0) - torch.arange(1.0, 11.0) / 40).abs() < 4 * error).all()


@pytest.mark.parametrize("k", [1, 3, 6, 7])
def test_mean_and_deviation_are_those_over_all_masks(k):
    W = orthonormal(7, 7, seed=3)
    result = overlap(W, torch.rand(7))
    values = [float(W[list(mask), :k].square().sum() / k) for mask in combinations(range(7), k)]
    assert len(values) == comb(7, k)
    assert float(result.baseline[k - 1]) == pytest.approx(np.mean(values), abs=1e-12)
    assert float(result.deviation[k - 1]) == pytest.approx(np.std(values), abs=1e-8)


def test_equal_weights_of_which_the_mask_has_only_some_are_counted():
    W, parameters = orthonormal(200, 20), torch.rand(200)
    parameters[10:170] = 1.0  # as those of a layer norm
    within, alike = overlap(W, parameters).ties
    assert within.tolist() == list(range(1, 21))
    assert set(alike.tolist()) == {160}


@pytest.mark.parametrize(("k", "masks"), [(0, 10), (3, 0)])
def test_without_eigenvectors_or_masks_there_are_no_quantiles(k, masks):
    result = overlap(orthonormal(10, k), torch.rand(10), random_masks=masks)
    assert (len(result.overlap), result.quantiles.shape) == (k, (2, 0))


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"\(10, 3\) and \(9,\)"):
        overlap(orthonormal(10, 3), torch.rand(9))
    with pytest.raises(ShapeError, match=r"not \(4, 3\)"):
        overlap_curve(torch.zeros(4, 3))


@pytest.mark.parametrize("flaw", [2.0, float("nan"), float("inf")])
def test_eigenvectors_that_are_none_are_refused(flaw):
    W = orthonormal(10, 3)
    W[:, 1] *= flaw
    with pytest.raises(SkerchError, match="first 2 eigenvectors"):
        overlap(W, torch.rand(10))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0])
def test_an_error_bounds_what_a_rotation_of_the_eigenspace_does_to_the_overlap(seed, scale):
    """The sines are exact ones, of each vector and the rotated space."""
    N, K = 30, 6
    W, other = orthonormal(N, K, seed), orthonormal(N, K, seed + 100)
    V = torch.linalg.qr(W + scale * other).Q
    sines = torch.zeros(K, K, dtype=torch.float64)
    for k in range(1, K + 1):
        outside = W - V[:, :k] @ (V[:, :k].T @ W)
        sines[:k, k - 1] = torch.linalg.norm(outside, dim=0)[:k]
    aligned = W.square().sum(1)  # the mask that the space lies on, where a rotation costs the most
    for parameters in (aligned, torch.rand(N, generator=torch.Generator().manual_seed(seed))):
        result = overlap(W, parameters, sines=sines)
        exact = overlap(V, parameters).overlap
        assert ((result.overlap - exact).abs() <= result.overlap_error + 1e-12).all()
    assert float(result.overlap_error[0]) == pytest.approx(
        2 * float(sines[0, 0]) * float(result.overlap[0] * (1 - result.overlap[0])) ** 0.5
        + float(sines[0, 0]) ** 2
    )


RANDOM = torch.rand(150, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SPECTRA = {
    "decay": 1 / torch.arange(1, 151).double(),
    "gap": torch.cat([torch.linspace(2, 1, 10).double(), 0.01 * RANDOM[10:]]),
    "clusters": torch.cat([3 + 1e-3 * RANDOM[:10], 2 + 1e-3 * RANDOM[10:20], 0.1 * RANDOM[20:]]),
    "noise": torch.cat([torch.linspace(5, 1, 10).double(), 0.5 * RANDOM[10:]]),
    "flat": RANDOM,
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(
    "options",
    [
        {"outer": 20, "inner": 60},
        {"outer": 20, "inner": 40, "rounds": 2},
        {"outer": 10, "inner": 60, "recovery": "oversampled"},
    ],
    ids=["many rounds", "two rounds", "oversampled"],
)
def test_overlaps_with_exact_eigenvectors_lie_within_the_errors(spectrum, options):
    """Leverage is on few parameters, as networks have it, and magnitudes follow it half-way."""
    V, values = heavy_tailed(150, 150), SPECTRA[spectrum] * (1 - 2 * (RANDOM > 0.7).double())
    H = (V * values) @ V.T
    op = aslinearoperator((H + H.T).float() / 2, self_adjoint=True)
    exact = V[:, values.abs().argsort(descending=True)]
    parameters = exact[:, :20].square().sum(1) + 0.05 * RANDOM
    held, known = [], []
    for seed in range(40):
        r = seigh(op, seed=seed, **options)
        sines = eigenspace_sines(r.eigenvalues, r.pair_bound, r.eigenvalue_bound, r.beyond)
        found = overlap(r.eigenvectors, parameters, sines=sines, random_masks=0)
        true = overlap(exact[:, : len(sines)], parameters, random_masks=0).overlap
        resolved = ~found.overlap_error.isnan()
        held += (found.overlap - true).abs()[resolved].le(found.overlap_error[resolved]).tolist()
        known.append(resolved.double().mean())
    assert np.mean(held or [1]) >= 0.95
    if spectrum == "flat":
        assert not held  # no gap is
    elif "inner" in options and options["inner"] == 60 and options["outer"] == 20:
        assert np.mean(known) > 0.3


def test_where_a_gap_is_not_resolved_there_is_no_error():
    values = torch.tensor([5.0, -4.9, 4.0, 3.99, 1.0]).double()
    rho, bound = torch.full((5,), 0.1).double(), torch.full((5,), 0.01).double()
    sines = eigenspace_sines(values, rho, bound, 0.5)
    assert sines.isnan().any(0).tolist() == [False, False, True, False, False]
    # the nearest outside: of 5 alone 4 ± 0.01; of all five ± 0.5
    assert float(sines[0, 0]) == pytest.approx(0.1 / 0.99)
    assert float(sines[1, 1]) == pytest.approx(0.1 / (4.9 - 0.5))
    assert sines[:, 4].tolist() == pytest.approx([0.1 / (abs(v) - 0.5) for v in values.tolist()])
    error = overlap(orthonormal(9, 5), torch.rand(9), sines=sines).overlap_error
    assert error.isnan().tolist() == [False, False, True, False, False]
    assert overlap(orthonormal(9, 5), torch.rand(9)).overlap_error.isnan().all()
    assert eigenspace_sines(values[:0], rho[:0], bound[:0], 0.0).shape == (0, 0)
