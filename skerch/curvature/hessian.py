"""The Hessian of a mean loss, as a linear operator on the selected parameters."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel

from skerch.curvature import backends, checks
from skerch.curvature.batching import channels_last, count_examples, has_images, to_device
from skerch.curvature.losses import BatchWeight, LossFn
from skerch.curvature.memory import keep_freed_memory
from skerch.curvature.parameters import params_to_vector, select_parameters
from skerch.errors import ShapeError, SkerchError
from skerch.linops.base import LinearOperator

MEMORY_FORMATS = ("preserve", "channels_last")


@dataclass(frozen=True)
class _BatchHessian:
    """The Hessian of one batch's mean loss, where the gradient is not constant."""

    weight: float
    choice: backends.Choice
    loss: float
    reached: bool  # whether the loss has a gradient at all
    columns: list[slice]
    params: list[Tensor]
    grads: list[Tensor]
    product: backends.Product

    def add(self, rows: Tensor, out: Tensor, compare: bool = False) -> None:
        """out += weight · (H_b Xᵀ)ᵀ for rows X and out of shape (b, N), in chunks of vectors.

        The vectors of a parameter are copied to memory of their own: an operation of the model may
        want them contiguous and aligned. With `compare` the first chunk is held against products
        one by one.
        """
        for start in range(0, len(rows) if self.params else 0, self.choice.chunk_size):
            chunk = slice(start, start + self.choice.chunk_size)
            vectors = rows[chunk]
            block = [
                vectors[:, c]
                .view(len(vectors), *p.shape)
                .clone(memory_format=torch.contiguous_format)
                for c, p in zip(self.columns, self.params, strict=True)
            ]
            products = self.product(block)
            if compare and not start:
                backends.compare(self.choice.strategy, self.grads, self.params, block, products)
            for c, part in zip(self.columns, products, strict=True):
                out[chunk, c].view_as(part).add_(part, alpha=self.weight)


class HessianOperator(LinearOperator):
    """H = Σ_b w_b ∇²L_b(θ) / Σ_b w_b, of shape (N, N) for the N entries of the parameters θ.

    L_b = loss_fn(model, batch) is the scalar mean over batch b and w_b = batch_weight(batch) what
    that mean divides by, so that H is the Hessian of the mean over all the data, however it is cut
    into batches. Products are exact: the gradient's graph of a batch is built once, applied to all
    vectors of the block (Pearlmutter 1994) and freed before the next batch. θ is ordered as in
    `skerch.curvature.parameters`; entries that the loss does not depend on, or only linearly, have
    zero rows and columns. Half precisions are summed over batches in float32. The first product
    costs a few more, by which the operator sees that it is the Hessian (`skerch.curvature.checks`).
    On a CPU the process keeps the memory that it frees from then on (`skerch.curvature.memory`).

    Args:
        model: used in the mode it is in; put it in eval mode for a loss without dropout and with
            fixed batch statistics. Neither its parameters nor their `.grad` change.
        data: batches that can be iterated again and again, such as a list or a DataLoader; in a
            fixed order for reproducible bits. Tensors are moved to the parameters' device.
        loss_fn: loss_fn(model, batch), a tensor of shape ().
        batch_weight: w_b ≥ 0, the number of examples by default (`count_examples`); batches of
            weight 0 are left out.
        param_filter: glob patterns on parameter names, those with ! to leave out; None selects all
            trainable ones.
        strategy: a name in `backends.STRATEGIES`, or "auto" for the fastest by the clock, chosen
            by `resolve` or by the first block of two or more columns.
        chunk_size: the most vectors that "batched" and "tape" take at once, a bound on their
            memory.
        memory_format: "channels_last" to have images, tensors of shape (n, c, h, w), in that
            format, which convolutions on many processors like better; "preserve" to have them as
            they come; "auto" to settle it with the strategy.
        check: whether to see before the first product that it will be right, and to compare the
            first vectorised block with products one by one; the attribute `compare` is the latter.

    Attributes:
        params: the selected parameters by name.
        strategy, chunk_size, memory_format: as given, or as chosen once "auto" is resolved.

    A model that went through `torch.compile` is used as it was before.

    Raises SkerchError for data that can be iterated only once, unknown strategies, parameters of
    several dtypes or devices; in products, for a loss that is not a scalar, that depends on none of
    the parameters or cannot be differentiated twice, for weights that are negative or not finite or
    sum to zero, for parameters that the model has no more, and `CheckError` for products that would
    be wrong.
    """

    self_adjoint = True

    def __init__(
        self,
        model: Module,
        data: Iterable[Any],
        loss_fn: LossFn,
        *,
        batch_weight: BatchWeight | None = None,
        param_filter: str | Sequence[str] | None = None,
        strategy: str = "auto",
        chunk_size: int | None = None,
        memory_format: str = "auto",
        check: bool = True,
    ):
        if not isinstance(data, Iterable) or isinstance(data, Iterator):
            raise SkerchError(
                "Every product iterates over the data, and one of type "
                f"{type(data).__name__} cannot be iterated more than once; give a list of batches "
                "or a DataLoader."
            )
        backends.check_strategy(strategy)
        if memory_format not in ("auto", *MEMORY_FORMATS):
            raise SkerchError(
                f"Unknown memory format {short(memory_format)}; choose auto, "
                f"{', '.join(MEMORY_FORMATS)}."
            )
        if chunk_size is not None and chunk_size < 1:
            raise SkerchError(f"chunk_size is {chunk_size}; the least is 1, None leaves it open.")
        model = getattr(model, "_orig_mod", model)  # of what torch.compile returns
        self.params = select_parameters(model, param_filter)
        kinds = {(p.dtype, p.device) for p in self.params.values()}
        if len(kinds) > 1:
            raise SkerchError(
                "The parameters must share one dtype and device, and have "
                f"{' and '.join(sorted(f'{dtype} on {device}' for dtype, device in kinds))}; "
                "convert the model or select some by param_filter."
            )
        ((dtype, device),) = kinds
        if device.type == "cpu":
            keep_freed_memory()
        size = sum(p.numel() for p in self.params.values())
        super().__init__((size, size), dtype, device)
        self.model = model
        self.data = data
        self.loss_fn = loss_fn
        self.batch_weight = batch_weight or count_examples
        self.strategy = strategy
        self.chunk_size = chunk_size
        self.memory_format = memory_format
        self.check = self.compare = check
        self._frozen = False
        self._kept: _BatchHessian | None = None
        self._compared: tuple[backends.Choice | None, int] = None, 0  # of so many vectors at once

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within, parameters, buffers and data stay as they are, which saves time.

        What the first product prepares serves the others, where all the data are one batch.
        """
        before = self._frozen
        self._frozen = True
        try:
            yield
        finally:
            self._frozen = before
            if not before:
                self._kept = None

    def restricted(self, batch: Any, dtype: torch.dtype | None = None) -> HessianOperator:
        """The operator of one batch alone, one vector after the other, without the checks.

        With a `dtype` it is of a network that is in that dtype meanwhile, as the batch is.
        """
        one = copy.copy(self)
        one.dtype = dtype or self.dtype
        if dtype is not None:
            batch = to_device(batch, self.device, dtype)
        one.data, one.strategy, one.chunk_size, one.check = [batch], "loop", 1, False
        one.memory_format = "preserve" if self.memory_format == "auto" else self.memory_format
        one._frozen, one._kept = False, None
        return one

    def vector(self) -> Tensor:
        """θ, a copy of shape (N,)."""
        return params_to_vector(self.params)

    def verify(self) -> None:
        """See that products will be right, before the first one; raises CheckError."""
        with _differentiating():
            checks.require(self)
        self.check = False

    def loss(self) -> float:
        """The mean loss Σ_b w_b L_b / Σ_b w_b."""
        if self._kept is not None:
            return self._kept.loss
        with _differentiating():  # for a loss that itself takes derivatives
            terms = [
                (w, w * float(self._batch_loss(batch, self.memory_format).detach()))
                for w, batch in self.data_batches()
            ]
        return math.fsum(term for _, term in terms) / math.fsum(w for w, _ in terms)

    def first_batch(self) -> Any:
        """The first batch of positive weight."""
        return next(self.data_batches())[1]

    def gradients(self) -> tuple[Tensor, list[Tensor | None]]:
        """The loss of the first batch and its gradient by parameter, None where it has none."""
        with _differentiating():
            batch = to_device(self.first_batch(), self.device)
            return self._gradients(batch, self.memory_format, create_graph=False)

    def resolve(self, block_size: int) -> backends.Choice:
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
        default = backends.STRATEGIES[self.strategy].chunk_size
        return backends.Choice(self.strategy, self.chunk_size or default, self.memory_format)

    def _fastest(self, block_size: int) -> backends.Choice:
        """The fastest of the choices that are open, on the first batch."""
        (_, batch), *more = islice(self.data_batches(), 2)
        vectors = math.inf if self._frozen and not more else block_size
        choices = backends.candidates(block_size, self.strategy, self.chunk_size)
        formats = [self.memory_format]
        if self.memory_format == "auto":
            convolves = any(p.ndim == 4 for p in self.model.parameters())
            formats = list(MEMORY_FORMATS) if convolves and has_images(batch) else ["preserve"]
        if len(choices) == len(formats) == 1:
            return replace(choices[0], memory_format=formats[0])
        times: dict[backends.Choice, float] = {}
        for memory_format in formats:
            with _differentiating():
                *_, params, grads = self._curved(batch, memory_format)
            choice, seconds = backends.fastest(choices, grads, params, vectors)
            times[replace(choice, memory_format=memory_format)] = seconds
            del params, grads  # the graph, before the next one's
        return min(times, key=lambda choice: times[choice])

    def _matmul(self, X: Tensor) -> Tensor:
        """H X for X of shape (N, b); fastest for the transpose of a contiguous (b, N)."""
        self._require_same_parameters()
        if self.check:
            self.verify()
        with _differentiating():
            try:
                return self._products(X.detach().T.contiguous()).T
            except backends.DerivativeError as error:
                raise backends.DerivativeError(
                    f"{error}{checks.layers(self, str(error))}"
                ) from error

    def _products(self, rows: Tensor) -> Tensor:
        """(H X)ᵀ for rows Xᵀ of shape (b, N)."""
        out = torch.zeros_like(rows, dtype=torch.promote_types(self.dtype, torch.float32))
        if not len(rows):
            return out.to(self.dtype)
        if self.strategy == "auto" and len(rows) == 1:
            chosen = "preserve" if self.memory_format == "auto" else self.memory_format
            choice = backends.Choice("loop", 1, chosen)
        else:
            choice = self.resolve(len(rows))
        if self._kept is not None and self._kept.choice == choice:
            self._kept.add(rows, out, self._to_compare(choice, len(rows)))
            return out.div_(self._kept.weight).to(self.dtype)
        total, count, reached = 0.0, 0, False
        compare = self._to_compare(choice, len(rows))
        for weight, batch in self.data_batches():
            hessian = None  # its graph goes before the next one comes
            hessian = self._of_batch(weight, batch, choice)
            hessian.add(rows, out, compare and not count)
            total, count, reached = total + weight, count + 1, reached or hessian.reached
        if not reached:
            raise SkerchError(
                f"The loss depends on none of the {len(self.params)} selected parameters; loss_fn "
                "must compute it by the model that it is given, and not under no_grad."
            )
        if self._frozen and count == 1:
            self._kept = hessian
        return out.div_(total).to(self.dtype)

    def _to_compare(self, choice: backends.Choice, vectors: int) -> bool:
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
            if named.get(name) is not parameter or kind != (self.dtype, self.device, True):
                raise SkerchError(
                    f"The model's parameter {name} is another one than when this operator was made "
                    "(load_state_dict(assign=True), a replaced layer, another dtype or device, "
                    "requires_grad=False); make the operator anew."
                )

    def _of_batch(self, weight: float, batch: Any, choice: backends.Choice) -> _BatchHessian:
        loss, reached, columns, params, grads = self._curved(batch, choice.memory_format)
        prepare = backends.STRATEGIES[choice.strategy if grads else "loop"].prepare
        product = prepare(grads, params)
        return _BatchHessian(weight, choice, loss, reached, columns, params, grads, product)

    def _curved(
        self, batch: Any, memory_format: str
    ) -> tuple[float, bool, list[slice], list[Tensor], list[Tensor]]:
        """Columns, parameters and gradients, with their graph, where the gradient is not constant.

        A parameter whose gradient has no graph has a zero row in H_b, by symmetry also a column.
        Before them: the loss, and whether there is a gradient at all.
        """
        loss, grads = self._gradients(
            to_device(batch, self.device), memory_format, create_graph=True
        )
        kept = [
            (c, p, g)
            for c, p, g in zip(self._columns(), self.params.values(), grads, strict=True)
            if g is not None and g.requires_grad
        ]
        reached = any(g is not None for g in grads)
        columns = [c for c, _, _ in kept]
        params: list[Tensor] = [p for _, p, _ in kept]
        return float(loss.detach()), reached, columns, params, [g for _, _, g in kept]

    def _gradients(
        self, batch: Any, memory_format: str, *, create_graph: bool
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The loss of a batch, which is on the device, and its gradient by parameter."""
        loss = self._batch_loss(batch, memory_format)
        params = list(self.params.values())
        if not loss.requires_grad:
            return loss, [None] * len(params)
        grads = torch.autograd.grad(loss, params, create_graph=create_graph, allow_unused=True)
        return loss, list(grads)

    def _columns(self) -> list[slice]:
        """Where each parameter lies in θ."""
        columns, start = [], 0
        for p in self.params.values():
            columns.append(slice(start, start + p.numel()))
            start += p.numel()
        return columns

    def _batch_loss(self, batch: Any, memory_format: str = "preserve") -> Tensor:
        batch = to_device(batch, self.device)
        if memory_format == "channels_last":
            batch = channels_last(batch)
        with ExitStack() as stack:
            # neither fused kernels of attention nor compiled graphs have a second derivative
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            loss = self.loss_fn(self.model, batch)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise SkerchError(
                f"loss_fn must return a tensor of shape (), the batch's mean, and returned {got}; "
                "take the mean."
            )
        return loss

    def data_batches(self) -> Iterator[tuple[float, Any]]:
        """Weights and batches; those of weight 0, whose mean is 0/0, are left out."""
        seen = False
        batches = iter(self.data)
        for number, batch in enumerate(batches):
            try:
                weight = float(self.batch_weight(batch))
            except ShapeError:  # it is not known, and cancels where there is no other batch
                if number or any(True for _ in batches):
                    raise
                weight = 1.0
            if not 0 <= weight < math.inf:
                raise SkerchError(f"A batch weighs {weight}; batch_weight must be finite and ≥ 0.")
            if weight:
                seen = True
                yield weight, batch
        if not seen:
            raise SkerchError(
                "The data have no batch of positive weight, so their mean loss is 0/0; give a "
                "non-empty list of batches and a batch_weight that counts them."
            )


@contextmanager
def _differentiating() -> Iterator[None]:
    """Derivatives are taken within, whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
