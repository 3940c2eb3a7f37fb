"""Parts of a curvature by module: the blocks on its diagonal, and rectangles of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter

from skerch.curvature.parameters import Filter, filter_parameters
from skerch.curvature.strategies.linear_map import LinearMap, Tensors
from skerch.errors import SkerchError
from skerch.linops.base import LinearOperator

if TYPE_CHECKING:
    from skerch.curvature.operator import LossCurvature


def parted(params: Mapping[str, Parameter], groups: Iterable[Filter] | None) -> list[list[str]]:
    """The names of the parameters of each group, and those of no group as a last one.

    None makes a group of each module's own parameters. Raises SkerchError for a parameter that is
    of two groups, and for one filter in the place of a list.
    """
    if groups is None:
        modules: dict[str, list[str]] = {}
        for name in params:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
        return list(modules.values())
    if isinstance(groups, str) or callable(groups):
        raise SkerchError(f"groups are a list of filters, one a block, not {groups!r}; write [it].")
    parts = [list(filter_parameters(params, group)) for group in groups]
    names = [name for part in parts for name in part]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SkerchError(f"The parameter {twice} is of two groups; a block has its own.")
    rest = [name for name in params if name not in names]
    return [*parts, rest] if rest else parts


def diagonal_blocks(A: LinearMap, parts: Sequence[Sequence[int]]) -> LinearMap:
    """v ↦ Σ_p E_p A E_p v, with E_p v the parts of v whose indices are in p, and zeros.

    It costs a product with A for each p.
    """

    def product(vector: Tensors) -> tuple[Tensor, ...]:
        products = [torch.zeros_like(v) for v in vector]
        for part in parts:
            alone = [v if i in part else torch.zeros_like(v) for i, v in enumerate(vector)]
            found = A.function(alone)
            for i in part:
                products[i] = found[i]
        return tuple(products)

    return LinearMap(product, A.like, A.failure)


class SubmatrixOperator(LinearOperator):
    """The rows of some parameters and the columns of some, by name, of a curvature of both."""

    def __init__(self, curvature: LossCurvature, rows: Sequence[str], columns: Sequence[str]):
        sizes = {name: p.numel() for name, p in curvature.params.items()}
        shape = sum(sizes[name] for name in rows), sum(sizes[name] for name in columns)
        super().__init__(shape, curvature.dtype, curvature.device)
        self.precision, self.curvature = curvature.precision, curvature
        self.self_adjoint = list(rows) == list(columns)
        self._rows = [curvature.columns[name] for name in rows]
        self._columns = [curvature.columns[name] for name in columns]

    def frozen(self) -> AbstractContextManager[None]:
        return self.curvature.frozen()

    def _matmul(self, X: Tensor) -> Tensor:
        return self._product(X, self._columns, self._rows)

    def _rmatmul(self, X: Tensor) -> Tensor:
        return self._product(X, self._rows, self._columns)

    def _product(self, X: Tensor, columns: Sequence[slice], rows: Sequence[slice]) -> Tensor:
        padded = X.new_zeros(X.shape[1], self.curvature.size).T
        start = 0
        for c in columns:
            size = c.stop - c.start
            padded[c], start = X[start : start + size], start + size
        products = self.curvature @ padded
        return torch.cat([products[r] for r in rows])
