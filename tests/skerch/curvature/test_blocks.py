"""The diagonal blocks of a curvature, and rectangles of it, against those of the dense oracle."""

from __future__ import annotations

import pytest
import torch

from skerch.curvature import GGNOperator, HessianOperator, LossCurvature, match_names, strategies
from skerch.errors import SkerchError

from . import cases
from .cases import assert_close, matrix


def where(op: LossCurvature, names: list[str]) -> torch.Tensor:
    """The indices of some parameters' entries in θ."""
    sizes = [p.numel() for p in op.params.values()]
    spans = dict(zip(op.params, torch.arange(op.size).split(sizes), strict=True))
    return torch.cat([spans[name] for name in names])


@pytest.mark.parametrize("strategy", strategies.STRATEGIES)
@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
@pytest.mark.parametrize("name", ["tied weights", "unused parameters"])
def test_a_block_a_module_by_default(name, kind, strategy):
    case = cases.make(name)
    op = case.operator(kind, strategy=strategy)
    H = case.ggn() if kind is GGNOperator else case.hessian()
    expected = torch.zeros(op.size, op.size).double()
    for module in {name.rpartition(".")[0] for name in op.params}:
        own = where(op, [n for n in op.params if n.rpartition(".")[0] == module])
        expected[own[:, None], own] = H[own[:, None], own]
    assert (H - expected).norm() > 0.1 * H.norm()
    blocks = op.block_diagonal()
    with blocks.frozen():
        assert_close(matrix(blocks), expected)
    assert_close(matrix(op), H)
    assert blocks.self_adjoint


def test_groups_are_blocks_and_the_rest_is_one():
    case = cases.make()
    op = case.operator(HessianOperator, method="finite_difference")
    H, expected = case.hessian(), torch.zeros(43, 43).double()
    for names in (["0.weight", "2.bias"], ["2.weight"], ["0.bias"]):
        own = where(op, names)
        expected[own[:, None], own] = H[own[:, None], own]
    groups = [["0.weight", "2.bias"], match_names("2.w*")]
    assert_close(matrix(op.block_diagonal(groups)), expected, 1e-8)
    with pytest.raises(SkerchError, match=r"parameter 0\.bias is of two groups"):
        op.block_diagonal(["0.*", "*.bias"])
    with pytest.raises(SkerchError, match=r"'1\.\*' matches no"):
        op.block_diagonal(["1.*"])
    for one in ("2.*", match_names("0.*")):
        with pytest.raises(SkerchError, match="groups are a list of filters"):
            op.block_diagonal(one)


def test_a_submatrix_has_the_rows_and_columns_of_parameters():
    case = cases.make()
    op = case.operator(HessianOperator)
    H = case.hessian()
    rows, columns = ["0.weight", "2.weight"], ["0.bias", "2.weight"]
    part = op.submatrix(rows="*.weight", columns=columns)
    expected = H[where(op, rows)][:, where(op, columns)]
    assert part.shape == expected.shape == (35, 20)
    assert not part.self_adjoint
    assert_close(part @ torch.eye(20).double(), expected)
    assert_close(part.T @ torch.eye(35).double(), expected.T)
    layer = op.submatrix("2.*", match_names("2.*"))
    assert layer.self_adjoint
    assert list(layer.curvature.params) == ["2.weight", "2.bias"]  # others are not differentiated
    assert_close(layer @ torch.eye(18).double(), case.hessian(["2.weight", "2.bias"]))
    assert_close(matrix(op), H)
