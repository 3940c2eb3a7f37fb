"""The spectral density: integrates to 1, exact moments, independent starts, atoms, error bars."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skerch import seigh
from skerch.errors import SkerchError
from skerch.krylov import lanczos, spectral_density
from skerch.linops import DiagonalOperator
from tests.skerch.krylov.cases import SPECTRA, matrix, peak_bytes


def below(A, points):
    """The share of A's eigenvalues up to each point."""
    values = np.linalg.eigvalsh(A.numpy())
    return torch.tensor([(values <= float(x)).mean() for x in points])


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("sigma", [None, 1e-9, 2.0])
def test_integrates_to_1_whatever_sigma_is(spectrum, sigma):
    found = spectral_density(matrix(spectrum), lanczos_steps=20, sigma=sigma, seed=0)
    assert torch.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-3)
    assert found.cumulative[-1] == pytest.approx(1, abs=1e-6)


def test_moments_are_those_of_the_trace():
    A = matrix("indefinite")
    found = spectral_density(A, num_runs=300, lanczos_steps=6, seed=0)
    for power in (1, 2, 3):
        moments = (found.raw_weights * found.raw_eigenvalues**power).sum(1)
        true = float(torch.linalg.matrix_power(A, power).trace()) / 100
        assert abs(float(moments.mean()) - true) < 3.5 * float(moments.std()) / 300**0.5


def test_seeds_s_and_s_plus_1_share_no_probe():
    A = matrix("indefinite")
    first, second = (
        spectral_density(A, num_runs=5, lanczos_steps=4, seed=seed).raw_eigenvalues[:, 0].tolist()
        for seed in (0, 1)
    )
    assert len({round(x, 8) for x in first + second}) == 10


def test_error_bars_hold_95_in_100():
    A = matrix("flat")
    held = []
    for seed in range(100):
        found = spectral_density(A, lanczos_steps=60, num_grid_points=200, sigma=1e-4, seed=seed)
        at = (found.grid - 1.2).abs().argmin()
        held.append(
            (found.cumulative - below(A, found.grid)).abs()[at] < found.cumulative_error[at]
        )
    assert 0.93 * len(held) <= sum(map(bool, held))


@pytest.mark.parametrize("source", ["lanczos", "seigh"])
def test_known_eigenpairs_are_exact_atoms_and_the_rest_is_quadrature(source):
    A = matrix("polynomial")
    known = lanczos(A, k=6, tol=1e-9, seed=0) if source == "lanczos" else seigh(A, outer=6)
    found = spectral_density(A, lanczos_steps=10, deflate=known, sigma=1e-3, seed=0)
    assert torch.allclose(found.atoms, known.eigenvalues)
    assert torch.allclose(found.raw_weights.sum(1), torch.full((10,), 0.94).double())
    assert float(found.raw_eigenvalues.nan_to_num().max()) < 1 / 7**2 + 1e-6
    assert torch.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-6)
    top = found.grid > 0.5
    assert float((found.density[top] * found.grid.diff()[0]).sum()) == pytest.approx(0.01, rel=1e-6)


def test_all_eigenpairs_known_leave_nothing_to_estimate():
    A = matrix("decaying", 8)
    values, vectors = torch.linalg.eigh(A)
    found = spectral_density(A, lanczos_steps=3, deflate=(values, vectors), seed=0)
    assert found.products == 0
    assert torch.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-6)


def test_a_run_ends_with_its_krylov_space():
    values = torch.cat([torch.full((30,), 1.0), torch.full((30,), 5.0)])
    A = matrix(values)
    found = spectral_density(A, num_runs=20, lanczos_steps=50, sigma=0.1, seed=0)
    assert found.raw_eigenvalues[:, 2:].isnan().all()
    assert torch.allclose(found.raw_eigenvalues[:, :2], torch.tensor([1.0, 5.0]).double())
    middle = (found.grid - 3).abs().argmin()
    assert abs(float(found.cumulative[middle]) - 0.5) <= float(found.cumulative_error[middle])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_long_runs_keep_the_density_without_reorthogonalisation(dtype):
    A = matrix("polynomial").to(dtype)
    found = spectral_density(A, num_runs=30, lanczos_steps=100, sigma=0.05, seed=0)
    assert torch.allclose(found.raw_weights.sum(1), torch.ones(30).double(), atol=1e-5)
    values = torch.linalg.eigvalsh(A.double())
    smooth = torch.special.ndtr((found.grid[:, None] - values) / 0.05).mean(1)
    assert float((found.cumulative - smooth).abs().max()) < 0.03


def test_the_same_seed_is_the_same_density_in_any_blocks_and_none_is_another():
    A = matrix("indefinite")
    how = {"num_runs": 4, "lanczos_steps": 10}
    first, again, by_blocks = (
        spectral_density(A, seed=2, block_size=size, **how).density for size in (None, None, 3)
    )
    assert torch.equal(first, again)
    assert torch.allclose(first, by_blocks, atol=1e-6)
    fresh, other = (spectral_density(A, **how).raw_eigenvalues for _ in range(2))
    assert not torch.equal(fresh, other)


def test_one_run_says_nothing_of_its_error():
    found = spectral_density(matrix("flat"), num_runs=1, lanczos_steps=9, seed=0)
    assert found.cumulative_error.isinf().all()


def test_sizes_that_do_not_fit_are_refused():
    A = torch.eye(10)
    for how, message in [
        ({"lanczos_steps": 11}, "lanczos_steps=11 exceeds operator size 10"),
        ({"num_runs": 0}, "num_runs must be at least 1"),
        ({"lanczos_steps": 2, "num_grid_points": 1}, "num_grid_points"),
        ({"lanczos_steps": 2, "sigma": 0.0}, "sigma=0.0 must be positive"),
    ]:
        with pytest.raises(SkerchError, match=message):
            spectral_density(A, **how)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_density_has_no_scale_of_its_own(scale):
    A = matrix("decaying", 30)
    one, other = (spectral_density(B, lanczos_steps=8, seed=0) for B in (A, scale * A))
    assert other.sigma == pytest.approx(scale * one.sigma)
    assert torch.allclose(other.density * scale, one.density, rtol=1e-6, atol=1e-9)


def test_atoms_of_vectors_that_are_not_orthonormal_are_refused():
    A = matrix("decaying", 30)
    V = torch.linalg.eigh(A).eigenvectors[:, -2:]
    for vectors in (2 * V, V @ torch.tensor([[1.0, 0.6], [0.0, 0.8]]).double()):
        with pytest.raises(SkerchError, match="atoms are of orthonormal"):
            spectral_density(A, lanczos_steps=5, deflate=(torch.ones(2), vectors))


def test_memory_is_a_few_vectors_a_run():
    n, runs = 1_000_000, 4
    diagonal = DiagonalOperator(torch.linspace(0.5, 1.5, n))
    how = {"num_runs": runs, "lanczos_steps": 30, "seed": 0}  # whose bases are 120 vectors
    assert peak_bytes(lambda: spectral_density(diagonal, **how)) < 4 * n * 60
