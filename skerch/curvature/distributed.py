"""Curvatures of data that are shared out among the ranks of torch.distributed.

Each rank holds a replica of the network and its own share of the data, as under
DistributedDataParallel. A block of products is computed on each rank and summed over ranks once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from skerch.curvature.base import CurvatureOperator
from skerch.curvature.empirical_fisher import EmpiricalFisherOperator
from skerch.curvature.fisher import FisherOperator, Numbered
from skerch.curvature.functional import Function, as_module
from skerch.curvature.ggn import GGNOperator
from skerch.curvature.hessian import HessianOperator
from skerch.curvature.losses.batches import NoDataError
from skerch.curvature.operator import UNREACHED, LossCurvature
from skerch.errors import ShapeError, SkerchError
from skerch.ranks import Ranks
from skerch.rounding import rounding

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by element size
NO_DATA = (
    "No rank has a batch of positive weight, so the mean loss is 0/0; give the ranks data, and a "
    "batch_weight that counts them."
)


class DistributedOperator(CurvatureOperator):
    """A = Σ_r w_r A_r / Σ_r w_r for the curvature A_r of rank r's data, which weigh w_r.

    A subclass says in `kind` which curvature it is. The ranks' data may have any sizes, and some
    ranks none: all together have the curvature that one process has of all the data. Making the
    operator, products, `loss` and `verify` are calls of all ranks, in the same order. Where one
    rank raises an error the others raise a SkerchError that has its message. Half precisions are
    summed in float32.

    Attributes:
        local: A_r, an operator on this rank's data.
    """

    kind: ClassVar[type[LossCurvature]]
    local: LossCurvature

    def __init__(self, ranks: Ranks, make: Callable[[], LossCurvature]):
        def work() -> tuple[LossCurvature, tuple[float]]:
            local = make()
            if ranks.size > 1:  # one of many batches, though it may be the only one here
                local.batch_weight = _known(local.batch_weight)
                if isinstance(local, FisherOperator) and local.samples:
                    local.dataloader = _AllNumbered(local.dataloader)
            return local, (local.size,)

        self.ranks = ranks
        self.local, sizes = ranks.each(work, 1)
        if len(set(sizes[:, 0].tolist())) > 1:
            raise SkerchError(
                f"The ranks select {', '.join(f'{n:.0f}' for n in sizes[:, 0])} parameters; give "
                "them the same model and param_filter."
            )
        super().__init__(self.local.shape, self.local.dtype, self.local.device)

    @property
    def params(self) -> dict[str, Any]:
        """The selected parameters by name."""
        return self.local.params

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """As of `LossCurvature`."""
        with self.local.frozen():
            yield

    def loss(self) -> float:
        """The mean loss Σ_r w_r L_r / Σ_r w_r over the data of all ranks."""

        def work() -> tuple[None, tuple[float, float]]:
            try:
                return None, self.local.weighted_loss()
            except NoDataError:
                return None, (0.0, 0.0)

        _, table = self.ranks.each(work, 2)
        total, weight = map(math.fsum, table.T.tolist())
        if not weight:
            raise NoDataError(NO_DATA)
        return total / weight

    def verify(self) -> None:
        """See that the products of each rank's data will be right; raises CheckError."""

        def work() -> tuple[None, tuple[()]]:
            try:
                self.local.verify()
            except NoDataError:
                self.local.check = False
            return None, ()

        self.ranks.each(work, 0)

    def _check_operand(self, X: Tensor, adjoint: bool) -> None:
        """Raise on all ranks where one has a tensor that does not fit, or of other columns."""

        def work() -> tuple[None, tuple[int]]:
            super(DistributedOperator, self)._check_operand(X, adjoint)
            return None, (X.shape[1] if X.ndim == 2 else 1,)

        _, columns = self.ranks.each(work, 1)
        if len(set(columns[:, 0].tolist())) > 1:
            raise SkerchError(
                f"The ranks multiply {', '.join(f'{b:.0f}' for b in columns[:, 0])} columns; give "
                "them as many."
            )

    def _products(self, X: Tensor) -> tuple[Tensor, float]:
        """Σ_b w_b (A_b X)ᵀ of shape (b, N) over this rank's batches, and Σ_b w_b over all ranks'.

        It is called by all ranks with one X; the first sum is still to be taken over ranks.
        """

        def work() -> tuple[Tensor, tuple[float, ...]]:
            same = _sum_and_norm(X), _checksum(self.local)
            try:
                out, weight, reached = self.local.weighted_products(X)
            except NoDataError:
                out, weight, reached = torch.zeros_like(X.T), 0.0, False
            return out, (weight, reached, *same[0], same[1])

        out, table = self.ranks.each(work, 5)
        weights, reached, sums, norms, checksums = table.T.tolist()
        if len(set(checksums)) > 1:
            raise SkerchError(
                "The ranks' networks differ in their parameters or buffers; send those of one rank "
                "to all (torch.distributed.broadcast)."
            )
        if max(sums) - min(sums) > rounding(X.dtype) * max(norms):
            raise SkerchError(
                "The ranks multiply different vectors; draw them from the same seed on all ranks, "
                "or send those of one rank to all (torch.distributed.broadcast)."
            )
        if not sum(weights):
            raise NoDataError(NO_DATA)
        if not any(reached):
            raise SkerchError(UNREACHED.format(len(self.params)))
        return out, math.fsum(weights)


class DDPOperator(DistributedOperator):
    """A curvature of replicas, with whole vectors on each rank.

    Args:
        model: a replica, with the same parameters and buffers on all ranks, which each block of
            products sees to; one in DistributedDataParallel is taken out of it.
        process_group: the ranks, those of the default group for None.

    Other arguments are those of `kind`, with the data of this rank alone. A X takes one X of shape
    (N, b) on all ranks and returns the same bits on all of them.
    """

    def __init__(
        self, model: Module | Function, *args: Any, process_group: Any = None, **options: Any
    ):
        model = as_module(model, options.pop("params", None))
        model = model.module if isinstance(model, DistributedDataParallel) else model
        device = next((p.device for p in model.parameters()), "cpu")
        ranks = Ranks.of_group(process_group, device)
        super().__init__(ranks, lambda: self.kind(model, *args, **options))

    def vector(self) -> Tensor:
        """θ, a copy of shape (N,)."""
        return self.local.vector()

    def _matmul(self, X: Tensor) -> Tensor:
        """A X for X of shape (N, b)."""
        out, weight = self._products(X)
        return self.ranks.sum(out).div_(weight).T


class DDPHessianOperator(DDPOperator):
    """The Hessian of data that are shared out among ranks; arguments as of `DDPOperator`."""

    kind = HessianOperator


class DDPGGNOperator(DDPOperator):
    """The generalised Gauss-Newton matrix likewise."""

    kind = GGNOperator


class DDPFisherOperator(DDPOperator):
    """The Fisher information likewise; of draws, data come in batches `Numbered(batch, index)`."""

    kind = FisherOperator


class DDPEmpiricalFisherOperator(DDPOperator):
    """The empirical Fisher matrix likewise."""

    kind = EmpiricalFisherOperator


def _known(batch_weight: Callable[[Any], float]) -> Callable[[Any], float]:
    """A weight that has to be known, where `weighted` does without that of a single batch."""

    def known(batch: Any) -> float:
        try:
            return batch_weight(batch)
        except ShapeError as error:
            raise SkerchError(str(error)) from error

    return known


class _AllNumbered(Iterable[Numbered]):
    """Batches that have the numbers of their examples, which a rank cannot tell for itself."""

    def __init__(self, in_order: Any):
        self.batches = in_order.batches

    def __iter__(self) -> Iterator[Numbered]:
        for batch in self.batches:
            if not isinstance(batch, Numbered):
                raise SkerchError(
                    "Labels are drawn by the number of an example among those of all ranks; give "
                    "batches Numbered(batch, index)."
                )
            yield batch


def _sum_and_norm(X: Tensor) -> tuple[float, float]:
    """Σ of all entries, and ‖X‖_F: they tell vectors apart that differ by more than rounding."""
    return float(X.sum(dtype=torch.float64)), float(torch.linalg.vector_norm(X))


def _checksum(op: LossCurvature) -> float:
    """A number that tells networks apart whose parameters or buffers differ in a bit."""
    number = 0
    for tensor in (*op.model.parameters(), *op.model.buffers()):
        if tensor.layout == torch.strided:
            real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            bits = real.detach().contiguous().view(BITS[real.element_size()])
            number = (31 * number + int(bits.sum(dtype=torch.int64))) % 2**53  # exact in float64
    return float(number)
