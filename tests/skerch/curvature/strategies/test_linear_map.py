"""Products of blocks are held against those of vectors one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerch.curvature import GGNOperator, HessianOperator
from skerch.curvature.dense import dense_hessian
from skerch.curvature.strategies.linear_map import StrategyError

from ..cases import CROSS_ENTROPY, matrix, network


class SquareGradient(torch.autograd.Function):
    """x ↦ 2 x, whose vectorised form takes the first vector for all."""

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return SquareGradient.apply(g)

    @staticmethod
    def vmap(info, in_dims, x):
        return (2 * x.select(in_dims[0], 0).expand_as(x.movedim(in_dims[0], 0))), 0


class Doubled(nn.Module):
    def forward(self, x):
        return SquareGradient.apply(x)


@pytest.mark.parametrize("strategy", ["batched", "tape", "auto"])
def test_a_vectorised_product_that_differs_one_by_one_is_refused(strategy):
    model, x, y = network(nn.Tanh(), Doubled())
    op = HessianOperator(model, [(x, y)], CROSS_ENTROPY, strategy=strategy)
    if strategy == "batched":
        with pytest.raises(
            StrategyError, match=r"batched gives other products .* Set strategy to loop"
        ):
            matrix(op)
    else:  # the tape has rules of its own, and auto leaves out what differs
        expected = dense_hessian(model, list(op.params), (x, y), CROSS_ENTROPY)
        torch.testing.assert_close(matrix(op), expected)
        assert op.strategy != "batched"


@pytest.mark.parametrize("strategy", ["batched", "tape"])
@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
def test_products_that_are_only_rounding_are_no_difference(strategy, kind):
    """Of two examples with three classes, most vectors are in the kernel."""
    model, x, y = network(nn.Identity(), examples=2)
    how = {"strategy": strategy, "chunk_size": 8}
    values, V = torch.linalg.eigh(matrix(kind.of_loss(model, [(x, y)], CROSS_ENTROPY)))
    kernel = V[:, values.abs() < 1e-12]
    assert kernel.shape[1] > 8
    op = kind.of_loss(model, [(x, y)], CROSS_ENTROPY, **how)
    assert (op @ kernel).norm() < 1e-12
