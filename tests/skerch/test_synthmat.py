import numpy as np
import pytest
import torch

from skerch.errors import ShapeError, SkerchError
from skerch.synthmat import exponential_decay, general, lowrank_noise, polynomial_decay, symmetric


def test_spectra_are_those_of_the_paper():
    np.testing.assert_allclose(polynomial_decay(5, 2, 0.5), [1, 1, 2**-0.5, 3**-0.5, 0.5])
    np.testing.assert_allclose(exponential_decay(5, 2, 0.5), [1, 1, 10**-0.5, 0.1, 10**-1.5])
    assert polynomial_decay(3, 3, 1.0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("signs", ["positive", "alternate", "random"])
def test_symmetric_matrix_has_the_eigenvalues_it_says(signs):
    spectrum = exponential_decay(40, 4, 0.1)
    H, eigenvalues = symmetric(spectrum, seed=3, signs=signs)
    assert torch.equal(H, H.T)
    assert torch.equal(eigenvalues.abs(), spectrum)
    np.testing.assert_allclose(np.linalg.eigvalsh(H), np.sort(eigenvalues), atol=1e-14)
    positive = int((eigenvalues > 0).sum())
    assert positive in {"positive": [40], "alternate": [20], "random": range(10, 31)}[signs]


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_general_matrix_has_the_singular_values_it_says(shape):
    A, singular_values = general(polynomial_decay(20, 4, 1.0), shape, seed=3)
    assert A.shape == shape
    np.testing.assert_allclose(np.linalg.svd(A, compute_uv=False), singular_values, atol=1e-14)


def test_bases_are_haar_rather_than_what_a_qr_leaves():
    """W₁₁ of a Haar matrix is symmetric about 0; Householder QR alone would fix its sign."""
    one_and_zero = torch.tensor([1.0, 0.0], dtype=torch.float64)
    cross = torch.stack([general(one_and_zero, (2, 2), seed)[0] for seed in range(400)])
    assert cross.mean(0).abs().max() < 0.1
    np.testing.assert_allclose(cross.square().mean(0), np.full((2, 2), 0.25), atol=0.05)


def test_lowrank_noise_is_ones_and_noise_of_order_xi():
    exact = lowrank_noise((50, 50), 5, 0.0, seed=1, sym=True)
    assert torch.equal(exact, torch.diag(torch.tensor([1.0] * 5 + [0.0] * 45).double()))
    noisy = lowrank_noise((400, 400), 5, 1e-2, seed=1, sym=True)
    assert torch.equal(noisy, noisy.T)
    values = np.linalg.eigvalsh(noisy)
    assert values[0] > 0
    np.testing.assert_allclose(values[-6], 4e-2, rtol=0.1)  # Marchenko and Pastur's edge, 4 ξ
    np.testing.assert_allclose(values.sum(), 5 + 400 * 1e-2, rtol=0.01)
    rectangular = np.linalg.svd(lowrank_noise((400, 100), 5, 1e-2, seed=1), compute_uv=False)
    np.testing.assert_allclose(rectangular[5], 1.5e-2, rtol=0.1)  # ξ (1 + √(n/m))


def test_everything_depends_on_the_seed_and_on_nothing_else():
    spectrum = polynomial_decay(10, 2, 1.0)
    for make in (
        lambda seed: symmetric(spectrum, seed, "random")[0],
        lambda seed: general(spectrum, (10, 12), seed)[0],
        lambda seed: lowrank_noise((10, 10), 2, 0.1, seed, sym=True),
    ):
        assert torch.equal(make(7), make(7))
        assert not torch.allclose(make(7), make(8))


def test_impossible_requests_are_refused_with_the_bound():
    with pytest.raises(SkerchError, match=r"rank is 6.*between 0 and 5"):
        polynomial_decay(5, 6, 1.0)
    with pytest.raises(SkerchError, match=r"'mixed'.*alternate"):
        symmetric(polynomial_decay(5, 1, 1.0), 0, signs="mixed")
    with pytest.raises(ShapeError, match=r"\(4, 9\) has no 5"):
        general(polynomial_decay(5, 1, 1.0), (4, 9), 0)
    with pytest.raises(ShapeError, match=r"\(4, 9\) is not square"):
        lowrank_noise((4, 9), 1, 0.1, 0, sym=True)
