"""Curvatures as symmetric operators on a vector of parameters, and one of them from a callable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from skerch.linops.base import LinearOperator


class CurvatureOperator(LinearOperator):
    """A symmetric operator of shape (n, n) on the flat vector of n parameters."""

    self_adjoint = True

    @property
    def size(self) -> int:
        """n, the number of entries of a vector."""
        return self.shape[0]

    def matvec(self, v: Tensor) -> Tensor:
        """A v for v of shape (n,); raises ShapeError, a ValueError, for another one."""
        product: Tensor = self @ v
        return product

    def rmatvec(self, v: Tensor) -> Tensor:
        """Aᵀ v, which is A v."""
        return self.matvec(v)

    def __call__(self, v: Tensor) -> Tensor:
        """A v."""
        return self.matvec(v)


class LambdaOperator(CurvatureOperator):
    """A callable v ↦ A v of vectors (size,) as an operator; A has to be symmetric."""

    def __init__(
        self,
        matvec_fn: Callable[[Tensor], Tensor],
        size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__((size, size), dtype, device)
        self.matvec_fn = matvec_fn

    def _matmul(self, X: Tensor) -> Tensor:
        return torch.stack([self.matvec_fn(x) for x in X.T], dim=1)
