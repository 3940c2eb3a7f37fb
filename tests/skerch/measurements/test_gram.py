"""Gram matrices and orthonormalisation in slabs, against torch's products and QR in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skerch.measurements.gram import SLAB_ROWS, gram, orthonormalise


@pytest.mark.parametrize(
    ("condition", "dtype", "tolerance"),
    [
        (1e3, torch.float32, 1e-8),
        (1e5, torch.float32, 1e-5),
        (1e6, torch.float32, 1e-8),
        (1e4, torch.float64, 1e-11),
        (1e10, torch.float64, 1e-5),
        (1e13, torch.float64, 1e-5),
    ],
)
def test_orthonormalisation_equals_a_qr(condition, dtype, tolerance):
    size, columns = 3 * SLAB_ROWS + 17, 30
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(size, columns, generator=generator, dtype=torch.float64)
    B = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -np.log10(condition), columns, dtype=torch.float64)
    scale *= 1e-7
    Y = (torch.linalg.qr(A).Q * scale @ torch.linalg.qr(B).Q).to(dtype)

    def rows(start: int, stop: int) -> torch.Tensor:
        return Y[start:stop]

    basis = orthonormalise(gram(rows, size), rows, size, dtype)
    Q = Y.double() @ basis.P
    identity = torch.eye(Q.shape[1], dtype=torch.float64)
    torch.testing.assert_close(Q.T @ Q, identity, rtol=0, atol=tolerance)
    torch.testing.assert_close(Q @ basis.R, Y.double(), rtol=0, atol=1e-18)
    singular = torch.linalg.svdvals(Y.double())[: Q.shape[1]]
    assert singular[-1] / singular[0] < max(2e-11, 1.1 / condition)
    torch.testing.assert_close(torch.linalg.norm(basis.R, dim=1), singular, rtol=1e-6, atol=1e-19)


def test_the_gram_matrix_does_not_depend_on_who_asks_for_rows():
    Y = torch.randn(2 * SLAB_ROWS + 5, 7, generator=torch.Generator().manual_seed(1))
    file_like = gram(lambda start, stop: Y[start:stop].clone(), len(Y))
    assert torch.equal(gram(lambda start, stop: Y[start:stop], len(Y)), file_like)
    torch.testing.assert_close(file_like, Y.double().T @ Y.double())


def test_what_is_known_of_a_gram_matrix_is_taken_as_it_is():
    Y = torch.randn(2 * SLAB_ROWS + 5, 300, generator=torch.Generator().manual_seed(1))
    truth = Y.double().T @ Y.double()
    for count in (1, 150, 299, 300):
        known = torch.full((count, count), 7.0).double()
        G = gram(lambda start, stop: Y[start:stop], len(Y), known=known)
        assert torch.equal(G[:count, :count], known)
        assert torch.equal(G, G.T)
        torch.testing.assert_close(G[count:], truth[count:])
