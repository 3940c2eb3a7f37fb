"""Nothing depends on torch's default device or dtype: what is given says where and in which."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from skerch import HessianOperator, aslinearoperator, seigh, ssvd, synthmat, to_scipy
from skerch.analysis.overlap import overlap
from skerch.decompositions.recoveries import RECOVERIES
from skerch.sketch_operators import KINDS, make


@pytest.fixture(params=["meta", torch.float64])
def other_defaults(request):
    """Sets a default of torch; on the device meta, tensors have no values to compute with."""

    def change():
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(request.param)

    yield change
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def test_the_library_gives_the_same_bits(other_defaults):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    matrix = torch.randn(30, 30, dtype=torch.float64)
    symmetric = aslinearoperator(matrix + matrix.T, self_adjoint=True)
    vectors, magnitudes = torch.eye(30)[:, :4], torch.randn(30)

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def results():
        for strategy in ("loop", "batched", "tape"):
            op = HessianOperator(model, [(x, y)], loss_fn, strategy=strategy)
            yield op @ x.new_ones(43, 2)
            yield torch.from_numpy(to_scipy(op) @ np.ones(43))
        for recovery in RECOVERIES:
            yield seigh(symmetric, outer=3, inner=9, recovery=recovery).eigenvectors
        for kind in KINDS:
            yield make(kind, (3, 30), seed=1, role="psi", dtype=torch.float32).rows(1, 3)
            yield seigh(op, outer=3, inner=9, sketch=kind).eigenvectors
            yield ssvd(symmetric, outer=3, sketch=kind).residual
        for decay in (synthmat.polynomial_decay, synthmat.exponential_decay):
            yield synthmat.symmetric(decay(6, 2, 0.5), 1, "alternate")[0]
        yield overlap(vectors, magnitudes, seed=1).quantiles

    expected = list(results())
    other_defaults()
    for found, value in zip(results(), expected, strict=True):
        assert (found.device, found.dtype) == (value.device, value.dtype)
        assert torch.equal(found, value)
