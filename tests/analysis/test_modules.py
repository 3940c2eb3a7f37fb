import pytest
import torch

from skerch.analysis import modules as module
from skerch.analysis.modules import module_shares, module_sizes
from skerch.errors import ShapeError

SIZES = {"0": 6, "2": 3, "": 11}


@pytest.fixture
def pairs():
    torch.manual_seed(0)
    W = torch.linalg.qr(torch.randn(20, 5, dtype=torch.float64))[0]
    return torch.tensor([4.0, -3.0, 2.0, 0.5, 0.0], dtype=torch.float64), W


@pytest.mark.parametrize("entries", [2**22, 20])  # one slab a module, and some
def test_shares_are_those_of_the_blocks_of_the_matrix(pairs, entries, monkeypatch):
    monkeypatch.setattr(module, "SLAB_ENTRIES", entries)
    values, W = pairs
    squares = (W @ torch.diag(values) @ W.T).square() / values.square().sum()
    shares = module_shares(values, W, SIZES)
    assert [(share.name, share.parameters) for share in shares] == list(SIZES.items())
    for share, rows in zip(shares, squares.split([6, 3, 11]), strict=True):
        start = {"0": 0, "2": 6, "": 9}[share.name]
        block = rows[:, start : start + share.parameters].sum()
        assert share.rows == pytest.approx(float(rows.sum()), abs=1e-12)
        assert share.block == pytest.approx(float(block), abs=1e-12)
    assert sum(share.rows for share in shares) == pytest.approx(1)


def test_parameters_of_a_module_are_counted_together():
    names = {"body.0.weight": 4, "body.0.bias": 2, "scale": 1, "head.weight": 3}
    parameters = {name: torch.zeros(size) for name, size in names.items()}
    assert module_sizes(parameters) == {"body.0": 6, "": 1, "head": 3}


def test_modules_of_another_network_are_refused(pairs):
    with pytest.raises(ShapeError, match=r"\(20, 5\) and 9"):
        module_shares(*pairs, {"0": 6, "2": 3})
