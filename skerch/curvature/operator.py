"""A curvature of a mean loss as a linear operator on the selected parameters, batch by batch."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice, pairwise
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from skerch.curvature import strategies
from skerch.curvature.base import CurvatureOperator
from skerch.curvature.batching import (
    check_microbatches,
    count_examples,
    has_images,
    split_batch,
    to_device,
)
from skerch.curvature.blocks import SubmatrixOperator, diagonal_blocks, parted
from skerch.curvature.functional import Function, as_module
from skerch.curvature.losses import BatchWeight, LossFn, batch_loss, differentiating, weighted
from skerch.curvature.parameters import (
    Filter,
    filter_parameters,
    params_to_vector,
    select_parameters,
    total_size,
)
from skerch.curvature.state import unchanged
from skerch.curvature.strategies.clock import fastest
from skerch.curvature.strategies.linear_map import (
    LinearMap,
    Product,
    StrategyError,
    Tensors,
    compare,
)
from skerch.errors import SkerchError

MEMORY_FORMATS = ("preserve", "channels_last")
UNREACHED = (
    "The loss depends on none of the {} selected parameters; loss_fn must compute it by the model "
    "that it is given, and not under no_grad."
)
Check = Callable[[Any], str]  # of an operator: what it found; raises CheckError


@dataclass(frozen=True)
class BatchCurvature:
    """The curvature A_b of one batch, where it is not zero."""

    loss: float | None  # where it is known
    reached: bool  # whether the loss has a gradient at all
    names: list[str]  # of the parameters that A_b touches: others have zero rows and columns
    map: LinearMap  # v ↦ A_b v, in tensors of these parameters' shapes


@dataclass(frozen=True)
class _Term:
    """w_b A_b, with the product of a strategy."""

    weight: float
    choice: strategies.Choice
    curvature: BatchCurvature
    columns: list[slice]
    product: Product

    def add(self, rows: Tensor, out: Tensor, check: bool = False) -> None:
        """out += w_b (A_b Xᵀ)ᵀ for rows X and out of shape (b, N), in chunks of vectors.

        The vectors of a parameter are copied to memory of their own: an operation of the model may
        want them contiguous and aligned. With `check` the first chunk is held against products one
        by one.
        """
        A, size = self.curvature.map, self.choice.chunk_size
        for start in range(0, len(rows) if A.like else 0, size):
            chunk = slice(start, start + size)
            vectors = rows[chunk]
            block = [
                vectors[:, c]
                .view(len(vectors), *p.shape)
                .to(p.dtype, copy=True, memory_format=torch.contiguous_format)
                for c, p in zip(self.columns, A.like, strict=True)
            ]
            products = self.product(block)
            if check and not start:
                self._compare(block, products)
            for c, part in zip(self.columns, products, strict=True):
                out[chunk, c].view_as(part).add_(part, alpha=self.weight)

    def _compare(self, block: Tensors, products: Tensors) -> None:
        """Hold products against those one by one, raising StrategyError where they differ.

        Of vectors that A maps to zero, as beyond all known eigenvectors, both are rounding; random
        ones tell then.
        """
        strategy, A = self.choice.strategy, self.curvature.map
        try:
            compare(strategy, A, block, products)
        except StrategyError:
            generator = torch.Generator().manual_seed(0)
            others = [torch.randn(v.shape, generator=generator, device="cpu").to(v) for v in block]
            compare(strategy, A, others, self.product(others))


class LossCurvature(CurvatureOperator):
    """A = Σ_b w_b A_b(θ) / Σ_b w_b, of shape (N, N) for the N entries of the parameters θ.

    A curvature is a subclass with `of_batch`, which makes the linear map v ↦ A_b v of a batch, and
    with `checks` of what is its own. The data's loop, weights, the choice of a strategy and blocks
    of vectors are all curvatures'; arguments, attributes and errors are those of `HessianOperator`.
    """

    checks: tuple[Check, ...] = ()  # that products will be right, in order
    derivatives: int = 2  # of the loss, that products take

    def __init__(
        self,
        model: Module | Function,
        dataloader: Iterable[Any],
        loss_fn: LossFn,
        *,
        params: Mapping[str, Tensor] | None = None,
        batch_weight: BatchWeight | None = None,
        param_filter: Filter | None = None,
        full_dataset: bool = True,
        num_batches: int | None = None,
        microbatch_size: int | None = None,
        microbatch_unsafe: bool = False,
        backend: Any = None,
        strategy: str = "auto",
        chunk_size: int | None = None,
        memory_format: str = "auto",
        check: bool = True,
    ):
        if not isinstance(dataloader, Iterable) or isinstance(dataloader, Iterator):
            raise SkerchError(
                "Every product iterates over the data, and one of type "
                f"{type(dataloader).__name__} cannot be iterated more than once; give a list of "
                "batches or a DataLoader."
            )
        strategies.check_strategy(strategy)
        if memory_format not in ("auto", *MEMORY_FORMATS):
            raise SkerchError(
                f"Unknown memory format {short(memory_format)}; choose auto, "
                f"{', '.join(MEMORY_FORMATS)}."
            )
        sizes = {"num_batches": num_batches, "microbatch_size": microbatch_size}
        for name, number in {**sizes, "chunk_size": chunk_size}.items():
            if number is not None and number < 1:
                raise SkerchError(f"{name} is {number}; the least is 1, None leaves it open.")
        model = as_module(model, params)
        if microbatch_size is not None and not microbatch_unsafe:
            check_microbatches(model)
        self.params = select_parameters(model, param_filter)
        kinds = {(p.dtype, p.device) for p in self.params.values()}
        if len(kinds) > 1:
            raise SkerchError(
                "The parameters must share one dtype and device, and have "
                f"{' and '.join(sorted(f'{dtype} on {device}' for dtype, device in kinds))}; "
                "convert the model or select some by param_filter."
            )
        ((dtype, device),) = kinds
        size = total_size(self.params)
        super().__init__((size, size), torch.promote_types(dtype, torch.float32), device)
        self.precision = dtype
        self.model = model
        self.dataloader = dataloader
        self.full_dataset, self.num_batches = full_dataset, num_batches
        self.microbatch_size, self.microbatch_unsafe = microbatch_size, microbatch_unsafe
        self.backend = backend
        self.loss_fn = loss_fn
        of_loss: BatchWeight | None = getattr(loss_fn, "batch_weight", None)
        self.batch_weight = batch_weight or of_loss or count_examples
        self.strategy = strategy
        self.chunk_size = chunk_size
        self.memory_format = memory_format
        self.check = self.compare = check
        self.blocks: list[list[str]] | None = None  # the names of each, if others are left out
        self._frozen = False
        self._kept: _Term | None = None
        self._turn: list[Any] | None = None  # the batches of the next product, if not all
        self._turns: Iterator[Any] | None = None  # and those after them
        self._compared: tuple[strategies.Choice | None, int] = None, 0  # of so many vectors at once

    @classmethod
    def of_loss(
        cls, model: Module | Function, dataloader: Iterable[Any], loss_fn: LossFn, **options: Any
    ) -> LossCurvature:
        """The curvature of a loss as experiments give it, whatever else its class is made of."""
        return cls(model, dataloader, loss_fn, **options)

    @abstractmethod
    def of_batch(self, batch: Any, memory_format: str) -> BatchCurvature:
        """A_b of a batch, which may be on another device; called where derivatives are taken."""

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within, parameters, buffers and data stay as they are, which saves time.

        What the first product prepares serves the others, where all the data are one batch.
        """
        before = self._frozen
        self._frozen = self.full_dataset
        try:
            yield
        finally:
            self._frozen = before
            if not before:
                self._kept = None

    def restricted(self, batch: Any, dtype: torch.dtype | None = None) -> LossCurvature:
        """The operator of one batch alone, one vector after the other, without the checks.

        With a `dtype` it is of a network that is in that dtype meanwhile, as the batch is.
        """
        one = self._copy()
        one.blocks = None
        one.precision = dtype or self.precision
        one.dtype = torch.promote_types(one.precision, torch.float32)
        one.full_dataset, one.num_batches, one.microbatch_size = True, None, None
        if dtype is not None:
            batch = to_device(batch, self.device, dtype)
        one.dataloader, one.memory_format = [batch], self._format
        one.strategy, one.chunk_size, one.check = "loop", 1, False
        return one

    def block_diagonal(self, groups: Iterable[Filter] | None = None) -> LossCurvature:
        """The curvature with zeros in the place of what is between blocks, of the same shape.

        A block is of the parameters that a module has itself, or of those of a group, given by a
        filter as `param_filter` is; those of no group are the last block. A product costs one of
        the whole for each block, in one pass over the data.
        """
        part = self._copy()
        part.blocks = parted(self.params, groups)
        return part

    def submatrix(self, rows: Filter, columns: Filter) -> SubmatrixOperator:
        """The rows and columns of some parameters, given by filters as `param_filter` is.

        A product costs one of the curvature of both.
        """
        chosen = [filter_parameters(self.params, taken) for taken in (rows, columns)]
        part = self._copy()
        part.params = {n: p for n, p in self.params.items() if n in chosen[0] or n in chosen[1]}
        size = total_size(part.params)
        part.shape = part.shape_here = (size, size)
        return SubmatrixOperator(part, list(chosen[0]), list(chosen[1]))

    def _copy(self) -> LossCurvature:
        """The same operator, with nothing prepared."""
        one = copy.copy(self)
        one._frozen, one._kept, one._turn, one._turns = False, None, None, None
        return one

    @property
    def columns(self) -> dict[str, slice]:
        """Where each parameter has its rows and columns."""
        ends = accumulate((p.numel() for p in self.params.values()), initial=0)
        return {name: slice(*at) for name, at in zip(self.params, pairwise(ends), strict=True)}

    def vector(self) -> Tensor:
        """θ, a copy of shape (N,)."""
        return params_to_vector(self.params).to(self.dtype)

    def verify(self) -> None:
        """See that products will be right, before the first one; raises CheckError."""
        with unchanged(self.model, self.device), differentiating():
            for check in self.checks:
                check(self)
        self.check = False

    def loss(self) -> float:
        """The mean loss Σ_b w_b L_b / Σ_b w_b."""
        if self._kept is not None and self._kept.curvature.loss is not None:
            return self._kept.curvature.loss
        total, weight = self.weighted_loss()
        return total / weight

    def weighted_loss(self) -> tuple[float, float]:
        """Σ_b w_b L_b and Σ_b w_b."""
        with differentiating():  # for a loss that itself takes derivatives
            terms = [
                (w, w * float(self._batch_loss(batch, self.memory_format).detach()))
                for w, batch in self.data_batches()
            ]
        return math.fsum(term for _, term in terms), math.fsum(w for w, _ in terms)

    def data_batches(self) -> Iterator[tuple[float, Any]]:
        """Weights and batches; those of weight 0 are left out."""
        return weighted(self._batches(), self.batch_weight)

    def _batches(self) -> Iterator[Any]:
        """The batches of the next product, whole or in parts."""
        batches: Iterable[Any] = islice(self.dataloader, self.num_batches)
        if not self.full_dataset:
            if self._turn is None:
                self._turns = self._turns or _in_turn(self.dataloader)
                self._turn = list(islice(self._turns, self.num_batches or 1))
            batches = self._turn
        if self.microbatch_size is None:
            return iter(batches)
        size = self.microbatch_size
        return chain.from_iterable(split_batch(batch, size) for batch in batches)

    def first_batch(self) -> Any:
        """The first batch of positive weight."""
        return next(self.data_batches())[1]

    def gradients(self) -> tuple[Tensor, list[Tensor | None]]:
        """The loss of the first batch and its gradient by parameter, None where it has none."""
        with differentiating():
            return self.batch_gradients(self.first_batch(), self.memory_format)

    def batch_gradients(
        self, batch: Any, memory_format: str, *, create_graph: bool = False
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The loss of a batch and its gradient by parameter, None where it has none."""
        loss = self._batch_loss(batch, memory_format)
        params = list(self.params.values())
        if not loss.requires_grad:
            return loss, [None] * len(params)
        grads = torch.autograd.grad(loss, params, create_graph=create_graph, allow_unused=True)
        return loss, list(grads)

    def _batch_loss(self, batch: Any, memory_format: str) -> Tensor:
        batch = to_device(batch, self.device)
        n = self.derivatives
        return batch_loss(self.model, self.loss_fn, batch, memory_format, derivatives=n)

    def resolve(self, block_size: int) -> strategies.Choice:
        """Settle "auto" for blocks of `block_size` columns, and return what products will use.

        Strategies and memory formats are timed on the first batch, in a few seconds at most. What
        is given or chosen already stays.
        """
        if block_size < 1:
            raise SkerchError(f"The block size is {block_size}; the least is 1.")
        if "auto" in (self.strategy, self.memory_format):
            choice = self._fastest(block_size)
            self.strategy, self.chunk_size = choice.strategy, choice.chunk_size
            self.memory_format = choice.memory_format
        default = strategies.STRATEGIES[self.strategy].chunk_size
        return strategies.Choice(self.strategy, self.chunk_size or default, self.memory_format)

    @property
    def _format(self) -> str:
        """The memory format where it is not worth the time to settle it."""
        return "preserve" if self.memory_format == "auto" else self.memory_format

    def _fastest(self, block_size: int) -> strategies.Choice:
        """The fastest of the choices that are open, on the first batch."""
        (_, batch), *more = islice(self.data_batches(), 2)
        vectors = math.inf if self._frozen and not more else block_size
        choices = strategies.candidates(block_size, self.strategy, self.chunk_size)
        formats = [self.memory_format]
        if self.memory_format == "auto":
            convolves = any(p.ndim == 4 for p in self.model.parameters())
            formats = list(MEMORY_FORMATS) if convolves and has_images(batch) else ["preserve"]
        if len(choices) == len(formats) == 1:
            return replace(choices[0], memory_format=formats[0])
        times: dict[strategies.Choice, float] = {}
        for memory_format in formats:
            with differentiating():
                A = self._curvature(batch, memory_format).map
            choice, seconds = fastest(choices, A, vectors)
            times[replace(choice, memory_format=memory_format)] = seconds
            del A  # and its graph, before the next one's
        return min(times, key=lambda choice: times[choice])

    def _matmul(self, X: Tensor) -> Tensor:
        """A X for X of shape (N, b); fastest for the transpose of a contiguous (b, N)."""
        out, total, reached = self.weighted_products(X)
        if not reached:
            raise SkerchError(UNREACHED.format(len(self.params)))
        return out.div_(total).T

    def weighted_products(self, X: Tensor) -> tuple[Tensor, float, bool]:
        """Σ_b w_b (A_b X)ᵀ of shape (b, N), Σ_b w_b, and whether any L_b has a gradient."""
        self._require_same_parameters()
        if self.check:
            self.verify()
        rows = X.detach().T.contiguous()
        if half := self.precision != self.dtype:  # whose range is that of entries around 1
            scales = rows.norm(dim=1, keepdim=True) / math.sqrt(max(self.size, 1))
            rows = rows / scales.masked_fill(scales == 0, 1.0)
        with unchanged(self.model, self.device), differentiating():
            out, total, reached = self._products(rows)
        self._turn = None
        return (out * scales if half else out), total, reached

    def _products(self, rows: Tensor) -> tuple[Tensor, float, bool]:
        out = torch.zeros_like(rows)
        if not len(rows):
            return out, 1.0, True
        if self.strategy == "auto" and len(rows) == 1:
            choice = strategies.Choice("loop", 1, self._format)
        else:
            choice = self.resolve(len(rows))
        if self._kept is not None and self._kept.choice == choice:
            self._kept.add(rows, out, self._to_compare(choice, len(rows)))
            return out, self._kept.weight, True
        total, count, reached = 0.0, 0, False
        check = self._to_compare(choice, len(rows))
        for weight, batch in self.data_batches():
            term = None  # its graph goes before the next one comes
            term = self._term(weight, batch, choice)
            term.add(rows, out, check and not count)
            total, count = total + weight, count + 1
            reached = reached or term.curvature.reached
        if self._frozen and count == 1 and reached:
            self._kept = term
        return out, total, reached

    def _curvature(self, batch: Any, memory_format: str) -> BatchCurvature:
        """A_b of a batch, or its blocks."""
        found = self.of_batch(batch, memory_format)
        if self.blocks is None:
            return found
        parts = [[i for i, n in enumerate(found.names) if n in block] for block in self.blocks]
        return replace(found, map=diagonal_blocks(found.map, [part for part in parts if part]))

    def _term(self, weight: float, batch: Any, choice: strategies.Choice) -> _Term:
        """The batch's curvature with its product; one that touches nothing needs no strategy."""
        found = self._curvature(batch, choice.memory_format)
        where = self.columns
        columns = [where[name] for name in found.names]
        product = strategies.prepare(choice.strategy if found.names else "loop", found.map)
        return _Term(weight, choice, found, columns, product)

    def _to_compare(self, choice: strategies.Choice, vectors: int) -> bool:
        """Whether these are more vectors at once than were compared with products one by one."""
        width = min(vectors, choice.chunk_size)
        if choice.strategy == "loop" or width == 1 or not self.compare:
            return False
        known, most = self._compared
        if known == choice and most >= width:
            return False
        self._compared = choice, width
        return True

    def _require_same_parameters(self) -> None:
        """Refuse a model whose parameters are others than those that were selected."""
        named = dict(self.model.named_parameters())
        for name, parameter in self.params.items():
            kind = (parameter.dtype, parameter.device, parameter.requires_grad)
            if named.get(name) is not parameter or kind != (self.precision, self.device, True):
                raise SkerchError(
                    f"The model's parameter {name} is another one than when this operator was made "
                    "(load_state_dict(assign=True), a replaced layer, another dtype or device, "
                    "requires_grad=False); make the operator anew."
                )


def _in_turn(data: Iterable[Any]) -> Iterator[Any]:
    """The batches, again and again."""
    there = True
    while there:
        there = False
        for batch in data:
            there = True
            yield batch
