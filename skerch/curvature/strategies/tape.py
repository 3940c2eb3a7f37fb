"""A linear map as a list of operations, run on blocks of vectors: c times the memory.

What autograd does for one v of a linear v ↦ A v it does for every v: the same operations, on
tensors that depend on v and on others that do not. `Tape` records them once (a Wengert list:
Griewank and Walther, "Evaluating Derivatives", 2008) and keeps what does not depend on v. A block
then goes through one operation after the other, along a leading dimension for its vectors, in the
layout that makes the matrix products fast; `torch.vmap` takes the operations that have no rule
here. For small networks that beats vmap over the whole backward pass, which has less choice of
layouts and goes through autograd for every block.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skerch.curvature.strategies.linear_map import LinearMap, Product, quiet_vmap
from skerch.curvature.strategies.operations import Slot, Step, slots_of
from skerch.errors import SkerchError

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default)
CONSTANT = (aten.zeros_like.default, aten.ones_like.default)  # whatever they are like


def prepare(A: LinearMap) -> Product:
    """The recorded product; raises TapeError where the map cannot be recorded."""
    with quiet_vmap():
        recorded = Tape(A, A.like)

    def product(block: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with quiet_vmap():
            return recorded(block)

    return product


class TapeError(SkerchError):
    """A backward pass that cannot be recorded."""


class Tape:
    """H V for blocks V, from one recorded pass v ↦ `backward`(v) with v shaped as `params`.

    Raises TapeError where an operation cannot be recorded: one that writes into a tensor, one whose
    result is no tensor, or one that `torch.vmap` does not know.
    """

    def __init__(
        self,
        backward: Callable[[Sequence[Tensor]], Sequence[Tensor]],
        params: Sequence[Tensor],
    ):
        generator = torch.Generator(params[0].device).manual_seed(0)
        vectors = [
            torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
            for p in params
        ]
        try:
            with _Recorder(vectors) as recorder:
                outputs = backward(vectors)
            self._results = [recorder.replace(o) for o in outputs]
            self._steps = _fuse(recorder.steps, slots_of(self._results))
            self._last = _last_uses(self._steps, slots_of(self._results))
            self._check(vectors, outputs)
        except SkerchError:
            raise
        except Exception as error:  # whatever an operation that was not foreseen may raise
            raise _refusal(f"{type(error).__name__}: {error}") from error

    def __call__(self, block: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The products with a block of c vectors, given and returned as (c, *shape) tensors."""
        values: dict[Slot, Tensor] = {Slot(i): vectors for i, vectors in enumerate(block, 1)}
        for step, last in zip(self._steps, self._last, strict=True):
            step.run(values)
            for slot in last:
                values.pop(slot, None)
        count = len(block[0])
        return tuple(
            values[r] if isinstance(r, Slot) else r.expand(count, *r.shape) for r in self._results
        )

    def _check(self, vectors: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """See that v and 2 v give what was recorded, and its double."""
        products = self([torch.stack([v, 2 * v]) for v in vectors])
        expected = [torch.stack([output, 2 * output]).double() for output in outputs]
        eps = torch.finfo(vectors[0].dtype).eps
        rounding = 100 * eps * math.hypot(*(float(e.norm()) for e in expected))
        for product, right in zip(products, expected, strict=True):
            error = float((product - right).norm())
            if error > eps**0.5 * float(right.norm()) + rounding:  # not if there are NaNs
                raise _refusal("it does other things for other vectors")


def _refusal(reason: str) -> TapeError:
    line = next(iter(reason.splitlines()), "")
    return TapeError(
        f"The backward pass of this model cannot be recorded: {line}; set strategy to batched or "
        "loop."
    )


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists the operations whose arguments depend on some tensors."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it takes an import of torch._dynamo, a second

    def __init__(self, inputs: Sequence[Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self._slots: dict[int, Slot] = {}
        self._alive: list[Tensor] = []  # an id is given again when its tensor dies
        self._holders: dict[int, set[int]] = {}  # of a piece of memory: the tensors of the tape
        self._written: set[int] = set()  # pieces of memory that depend on v in part, maybe
        for tensor in inputs:
            self._add(tensor)

    def slot(self, value: Any) -> Slot | None:
        """The slot of a tensor that depends on the inputs."""
        return self._slots.get(id(value)) if isinstance(value, Tensor) else None

    def _add(self, tensor: Tensor) -> Slot:
        self._hold(tensor)
        self._slots[id(tensor)] = Slot(len(self._alive))
        return self._slots[id(tensor)]

    def _hold(self, tensor: Tensor) -> None:
        self._alive.append(tensor)
        self._holders.setdefault(_memory(tensor), set()).add(id(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        pure, before = func, args
        if func._schema.is_mutable:
            pure, before = self._pure(func, args)
        arguments = None
        if func not in CONSTANT and any(self.slot(a) for a in tree_leaves(before)):
            arguments = [self.replace(a) for a in before]
            if func._schema.is_mutable:
                self._alive.append(args[0])
                self._written.add(_memory(args[0]))
        result = func(*args, **keywords)
        if arguments is not None:
            results = result if isinstance(result, tuple | list) else [result]
            outputs = [self._add(r) if isinstance(r, Tensor) else None for r in results]
            if not any(outputs):
                raise _refusal(f"the result of {func} is no tensor")
            self.steps.append(Step(pure, arguments, keywords, outputs))
        return result

    def _pure(self, func: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """The operation that returns what `func` writes into its first argument, and arguments.

        It stands for `func` as long as no other tensor of the tape has its memory there.
        """
        target = args[0]
        name, overload = func._schema.name.removeprefix("aten::"), func._schema.overload_name
        pure = getattr(getattr(aten, name.removesuffix("_"), None), overload or "default", None)
        own = {id(target)} if self.slot(target) else set()
        if not name.endswith("_") or pure is None or self._holders.get(_memory(target), own) != own:
            raise _refusal(f"{func} writes into a tensor")
        return pure, args if own else (target.clone(), *args[1:])

    def replace(self, argument: Any) -> Any:
        """Slots in the place of what depends on the inputs."""
        if isinstance(argument, tuple | list):
            return [self.replace(a) for a in argument]
        if not isinstance(argument, Tensor):
            return argument
        if slot := self.slot(argument):
            return slot
        if _memory(argument) in self._written:
            raise _refusal("it writes into a part of a tensor")
        self._hold(argument)
        return argument.detach()


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _fuse(steps: Sequence[Step], results: Sequence[Slot]) -> list[Step]:
    """The steps, with x + A B as one where nothing else uses A B, in place where none uses x."""
    uses = Counter([*results, *(slot for step in steps for slot in step.slots)])
    new: dict[Slot, Step] = {}  # steps whose result is memory of its own that one step uses
    fused: list[Step] = []
    for step in steps:
        if step.function is aten.add.Tensor and not step.keywords:
            for x, product in (step.arguments, step.arguments[::-1]):
                if (
                    isinstance(x, Slot)
                    and product in new
                    and new[product].function is aten.mm.default
                ):
                    multiply = new.pop(product)
                    fused.remove(multiply)
                    step = Step(
                        aten.addmm.default, [x, *multiply.arguments], {}, step.outputs, x in new
                    )
                    break
        out = step.outputs[0]
        makes = step.function in PRODUCTS or torch.Tag.pointwise in step.function.tags
        if out and uses[out] == 1 and makes:
            new[out] = step
        fused.append(step)
    return fused


def _last_uses(steps: Sequence[Step], results: Sequence[Slot]) -> list[list[Slot]]:
    """For each step, the slots that no later step uses."""
    seen, last = set(results), []
    for step in reversed(steps):
        last.append([slot for slot in dict.fromkeys(step.slots) if slot not in seen])
        seen.update(step.slots)
    return last[::-1]
