"""Vectors of which each rank of torch.distributed has some rows, and operators on them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from skerch.errors import SkerchError
from skerch.krylov.backend import SingleDeviceBackend
from skerch.linops.base import LinearOperator
from skerch.ranks import Ranks


class DistributedBackend(SingleDeviceBackend):
    """Inner products are summed over ranks, in float64, to the same bits on all of them.

    Rank r has the rows `rows` of every vector, ascending; by default the r-th of as many equal
    parts as there are ranks. Random vectors are those of one process, whatever the number of ranks:
    an algorithm draws the same numbers, takes the same steps and differs by rounding. All ranks
    call each method, in the same order.
    """

    def __init__(self, ranks: Ranks | None = None, rows: range | Tensor | None = None):
        self.ranks = ranks or Ranks.of_group()
        self._rows = rows

    def rows(self, size: int) -> range | Tensor:
        if self._rows is not None:
            return self._rows
        rank, ranks = self.ranks.rank, self.ranks.size
        return range(size * rank // ranks, size * (rank + 1) // ranks)

    def _sum(self, part: Tensor) -> Tensor:
        return self.ranks.sum(part.to(self.ranks.device)).to(part.device)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        return self._sum(super().dot(a, b))

    def norm(self, a: Tensor) -> Tensor:
        return self._sum(super().norm(a).square()).sqrt()

    def inner(self, A: Tensor, B: Tensor) -> Tensor:
        return self._sum(super().inner(A, B))

    def dots(self, A: Tensor, B: Tensor) -> Tensor:
        return self._sum(super().dots(A, B))

    def randn_like(self, a: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return self._rows_of(super().randn_like, a, generator)

    def rademacher_like(self, a: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return self._rows_of(super().rademacher_like, a, generator)

    def _rows_of(self, draw: Any, a: Tensor, generator: torch.Generator | None) -> Tensor:
        """This rank's rows of what one process draws; all have generators in the same state."""
        size = int(self.ranks.table([len(a)]).sum())
        if generator is None:
            generator = torch.Generator().manual_seed(self.seed(None))
        whole: Tensor = draw(a.new_empty(size, *a.shape[1:]), generator=generator)
        rows = self.rows(size)
        return whole[rows.start : rows.stop] if isinstance(rows, range) else whole[rows]

    def seed(self, seed: int | None) -> int:
        own = super().seed(seed)
        told = self.ranks.table([own % 2**53])[:, 0].tolist()  # what a float64 can tell
        if seed is None:
            return int(told[0])
        if len(set(told)) > 1:
            raise SkerchError(
                f"The ranks have the seeds {', '.join(f'{s:.0f}' for s in told)}; give them one."
            )
        return own


class ShardedOperator(LinearOperator):
    """A symmetric operator of whole vectors, as one of vectors of which each rank has some rows.

    A X takes and returns this rank's rows of X. It is computed from the whole X on each rank, one
    block at a time, while what an algorithm keeps is sharded. Replicas multiply alike, and
    operators of `skerch.curvature.distributed` share the data.

    Raises SkerchError for an operator that is not declared self-adjoint.
    """

    self_adjoint = True

    def __init__(self, operator: LinearOperator, backend: DistributedBackend):
        if not operator.self_adjoint:
            raise SkerchError(f"{operator!r} is not self-adjoint, and cannot be sharded by rows.")
        super().__init__(operator.shape, operator.dtype, operator.device)
        self.operator, self.backend = operator, backend
        rows = backend.rows(self.shape[0])
        self.shape_here = len(rows), len(rows)
        self._here = slice(rows.start, rows.stop) if isinstance(rows, range) else rows

    def frozen(self) -> AbstractContextManager[None]:
        return self.operator.frozen()

    def _matmul(self, X: Tensor) -> Tensor:
        whole = torch.zeros(self.shape[0], X.shape[1], dtype=X.dtype, device=X.device)
        whole[self._here] = X
        rows: Tensor = (self.operator @ self.backend.ranks.sum(whole))[self._here]
        return rows
