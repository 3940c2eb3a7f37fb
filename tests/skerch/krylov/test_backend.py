"""Backends: inner products in float64, and random vectors that do not depend on what is where."""

from __future__ import annotations

import pytest
import torch

from skerch.errors import SkerchError
from skerch.krylov import SingleDeviceBackend, backend


class Shard(SingleDeviceBackend):
    """Some rows of every vector."""

    def __init__(self, rows):
        self.here = rows

    def rows(self, size):
        return self.here


def test_inner_products_of_float32_vectors_are_summed_in_float64():
    torch.manual_seed(0)
    A, B = torch.randn(300_001, 3), torch.randn(300_001, 2)
    ours = SingleDeviceBackend()
    assert torch.allclose(ours.inner(A, B), A.double().T @ B.double(), rtol=1e-13, atol=1e-10)
    assert torch.allclose(ours.dots(A, A), A.double().square().sum(0), rtol=1e-13)


@pytest.mark.parametrize("law", ["randn", "rademacher"])
@pytest.mark.parametrize("rows", [range(0, 7), range(7, 20), range(16, 20), range(5, 5)])
def test_random_vectors_are_the_same_numbers_whoever_holds_which_rows(law, rows, monkeypatch):
    monkeypatch.setattr(backend, "DRAWN_ROWS", 8)
    like = torch.empty(0, dtype=torch.float64)
    how = {"size": 20, "seed": 3, "role": "estimate"}
    whole = getattr(SingleDeviceBackend(), law)(like, range(3), **how)
    part = getattr(Shard(rows), law)(like, [1, 2], **how)
    assert torch.equal(part, whole[rows.start : rows.stop, 1:])


def test_random_vectors_have_their_law():
    like = torch.empty(0, dtype=torch.float64)
    how = {"size": 100_000, "seed": 0, "role": "estimate"}
    g = SingleDeviceBackend().randn(like, [0], **how)
    signs = SingleDeviceBackend().rademacher(like, [0], **how)
    assert abs(float(g.mean())) < 0.015
    assert abs(float(g.square().mean()) - 1) < 0.02
    assert set(signs[:, 0].tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.015


def test_no_seed_is_a_fresh_one_and_a_negative_one_is_refused():
    ours = SingleDeviceBackend()
    assert ours.seed(None) != ours.seed(None)
    assert ours.seed(5) == 5
    with pytest.raises(SkerchError, match="non-negative"):
        ours.seed(-1)
