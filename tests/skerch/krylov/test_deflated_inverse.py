"""Inverses by eigenpairs, and the preconditioners that they make, against dense inverses."""

from __future__ import annotations

import pytest
import torch

from skerch.decompositions.seigh import seigh
from skerch.errors import ShapeError, SkerchError
from skerch.krylov import DeflatedInverse, conjugate_gradients, lanczos
from skerch.linops import DiagonalOperator
from tests.skerch.krylov.cases import matrix

EYE = torch.eye(100, dtype=torch.float64)


def leading(A, k):
    values, vectors = torch.linalg.eigh(A)
    order = values.abs().argsort(descending=True)[:k]
    return values[order], vectors[:, order]


def close(one, other):
    return torch.allclose(one, other, rtol=0, atol=1e-10 * float(other.abs().max()))


@pytest.mark.parametrize("k", [0, 7, 100])
def test_a_spectrum_that_is_flat_beyond_the_pairs_is_inverted_exactly(k):
    A = matrix(torch.cat([torch.linspace(2, 50, k), torch.full((100 - k,), 0.3)]))
    inverse = DeflatedInverse(leading(A, k), 0.1, trace=float(A.trace()))
    exact = torch.linalg.inv(A + 0.1 * EYE)
    assert close(inverse @ EYE, exact)
    assert close(inverse @ EYE[:, 3], exact[:, 3])
    root = DeflatedInverse(leading(A, k), 0.1, trace=float(A.trace()), power=-0.5)
    assert close(root @ (root @ EYE), exact)


def test_without_a_trace_what_is_beyond_the_pairs_is_damped_alone():
    A = matrix("rank one")
    assert close(DeflatedInverse(leading(A, 1), 0.1) @ EYE, torch.linalg.inv(A + 0.1 * EYE))


def test_takes_the_pairs_and_the_trace_of_seigh():
    A = matrix("decaying")
    found = seigh(A, outer=40, seed=0)
    mean = (found.trace.value - float(found.eigenvalues.sum())) / (100 - len(found.eigenvalues))
    inverse = DeflatedInverse(found, 0.1)
    assert inverse.complement == pytest.approx(1 / (mean + 0.1))
    exact = torch.linalg.inv(A + 0.1 * EYE)
    assert torch.linalg.norm(inverse @ EYE - exact) < 0.05 * torch.linalg.norm(exact)


def test_takes_the_pairs_of_lanczos():
    A = matrix("decaying")
    inverse = DeflatedInverse(lanczos(A, k=5, tol=1e-13, seed=0), 0.01)
    exact = DeflatedInverse(leading(A, 5), 0.01)
    assert close(inverse @ EYE, exact @ EYE)


def test_another_inverse_acts_on_the_complement_alone():
    A, M = matrix("decaying"), matrix("flat", seed=1)
    values, W = leading(A, 5)
    P = EYE - W @ W.T
    inverse = DeflatedInverse((values, W), 0.01, complement=M)
    assert close(inverse @ EYE, W @ torch.diag(1 / (values + 0.01)) @ W.T + P @ M @ P)
    assert close(inverse @ W, W / (values + 0.01))


def test_deflated_cg_needs_fewer_products_with_each_complement():
    scales = torch.logspace(-1.5, 0, 100, dtype=torch.float64)
    A = scales[:, None] * matrix("flat", seed=2) * scales
    W = torch.linalg.qr(torch.randn(100, 8, generator=torch.Generator().manual_seed(3)).double()).Q
    A = A + W @ torch.diag(torch.logspace(1, 3, 8).double()) @ W.T
    B = torch.randn(100, 4, generator=torch.Generator().manual_seed(1)).double()
    pairs = leading(A, 8)
    diagonal = DiagonalOperator(1 / (scales**2 + 1e-3))
    products = [
        conjugate_gradients(A, B, damping=1e-3, tol=1e-8, preconditioner=M).products
        for M in [
            None,
            DeflatedInverse(pairs, 1e-3),
            DeflatedInverse(pairs, 1e-3, complement=diagonal),
        ]
    ]
    assert products[0] > 1.3 * products[1] > 1.3**2 * products[2]


def test_the_sketched_pairs_of_a_curvature_save_products():
    A = matrix("polynomial", 200)
    b = torch.randn(200, generator=torch.Generator().manual_seed(1)).double()
    how = {"damping": 1e-4, "tol": 1e-8}
    plain = conjugate_gradients(A, b, **how)
    deflated = conjugate_gradients(
        A, b, preconditioner=DeflatedInverse(seigh(A, outer=30, seed=0), 1e-4), **how
    )
    assert deflated.products < plain.products / 3


def test_negative_eigenvalues_are_refused_unless_their_magnitude_is_asked_for():
    A = matrix("indefinite")  # from -0.73 to 1
    pairs = leading(A, 100)
    with pytest.raises(SkerchError, match=r"eigenvalue -0\.729 with damping=0\.1 .*absolute=True"):
        DeflatedInverse(pairs, 0.1)
    assert close(DeflatedInverse(pairs, 0.8) @ EYE, torch.linalg.inv(A + 0.8 * EYE))
    values, vectors = pairs
    exact = vectors @ torch.diag(1 / (values.abs() + 0.1)) @ vectors.T
    assert close(DeflatedInverse(pairs, 0.1, absolute=True) @ EYE, exact)


def test_what_does_not_fit_is_refused():
    pairs = leading(matrix("decaying"), 5)
    with pytest.raises(SkerchError, match="damping=-1"):
        DeflatedInverse(pairs, -1)
    with pytest.raises(SkerchError, match="damping=0 leaves no inverse"):
        DeflatedInverse(pairs, 0)
    with pytest.raises(ShapeError, match=r"complement is of shape \(3, 3\)"):
        DeflatedInverse(pairs, 1, complement=torch.eye(3))
    with pytest.raises(SkerchError, match=r"pairs is a int; it must be \(eigenvalues"):
        DeflatedInverse(3, 1)
    with pytest.raises(ShapeError, match=r"pairs has eigenvalues of shape \(5,\)"):
        DeflatedInverse((pairs[0], pairs[1][:, :4]), 1)
