"""The operations of a tape, on blocks of vectors: c of them, along a leading dimension.

Most have a rule here, in the layout that makes the matrix products fast; `torch.vmap` takes the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
UNBROADCAST = (aten.gelu_backward.default,)  # oneDNN's wants arguments of one shape
LINEAR = (aten._log_softmax_backward_data.default,)  # in the first argument, where only it depends
WIDE = 64  # columns that make it worth a copy to have one large product instead of many


class Slot(int):
    """Stands for a tensor that depends on v; those of v itself come first, from 1 on."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operation; `arguments` has slots in the place of what depends on v."""

    function: Any
    arguments: list[Any]
    keywords: dict[str, Any]
    outputs: list[Slot | None]  # None for what is no tensor
    overwrites: bool = False  # the first argument, which nothing else needs
    aligned: dict[int, Tensor] = field(default_factory=dict)  # constants in another form

    @cached_property
    def slots(self) -> list[Slot]:
        """The arguments that depend on v."""
        return slots_of(self.arguments)

    @cached_property
    def rule(self) -> Callable[..., Tensor] | None:
        """What does it on blocks; None leaves it to `torch.vmap`."""
        if self.function in UNBROADCAST:
            return None
        if torch.Tag.pointwise in self.function.tags:
            return _pointwise
        others = any(isinstance(argument, Slot) for argument in self.arguments[1:])
        if self.keywords or (self.function in LINEAR and others):
            return None
        return RULES.get(self.function)

    def run(self, values: dict[Slot, Tensor]) -> None:
        """Add the outputs to the values of the slots, which have a leading dimension of c."""
        if self.rule is None:
            values.update(self._vectorised(values))
        else:
            out = self.outputs[0]
            assert out is not None
            values[out] = self.rule(self, *_fill(self.arguments, values))

    def _vectorised(self, values: Mapping[Slot, Tensor]) -> dict[Slot, Tensor]:
        slots = list(dict.fromkeys(self.slots))

        def one(*tensors: Tensor) -> tuple[Tensor, ...]:
            arguments = _fill(self.arguments, dict(zip(slots, tensors, strict=True)))
            result = self.function(*arguments, **self.keywords)
            results = result if isinstance(result, tuple | list) else [result]
            return tuple(r for r in results if isinstance(r, Tensor))

        outputs = [slot for slot in self.outputs if slot is not None]
        return dict(zip(outputs, torch.vmap(one)(*(values[s] for s in slots)), strict=True))


def slots_of(argument: Any) -> list[Slot]:
    """The slots in a tree of arguments, in order."""
    return [leaf for leaf in tree_leaves(argument) if isinstance(leaf, Slot)]


def _fill(argument: Any, values: Mapping[Slot, Tensor]) -> Any:
    if isinstance(argument, list):
        return [_fill(a, values) for a in argument]
    return values[argument] if isinstance(argument, Slot) else argument


def _factors(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, bool]:
    """L and R with L R = A B, or its transpose if that makes the result's rows longer (then true).

    Of A (c, r, k) and B (c, k, m) one may lack the first dimension. Where R does, L has all c r
    rows below each other.
    """
    turned = 2 in (A.ndim, B.ndim) and A.shape[-2] > B.shape[-1]
    L, R = (B.mT, A.mT) if turned else (A, B)
    if R.ndim == 2:
        if L.stride(-1) == 1 or R.shape[-1] >= WIDE:
            return L.flatten(end_dim=1), R, turned
        R = R.expand(len(L), *R.shape)
    elif L.ndim == 2:
        L = L.expand(len(R), *L.shape)
    return L, R, turned


def _mm(step: Step, A: Tensor, B: Tensor) -> Tensor:
    count = len(A) if A.ndim == 3 else len(B)
    L, R, turned = _factors(A, B)
    product = torch.bmm(L, R) if R.ndim == 3 else (L @ R).view(count, -1, R.shape[1])
    return product.mT if turned else product


def _addmm(step: Step, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    L, R, turned = _factors(A, B)
    total = x.mT if turned else x
    if not total.is_contiguous() or x.shape[1:] != (A.shape[-2], B.shape[-1]):
        return x + _mm(step, A, B)
    into = total if R.ndim == 3 else total.flatten(end_dim=1)
    name = "baddbmm" if R.ndim == 3 else "addmm"
    add = getattr(into, f"{name}_" if step.overwrites else name)
    result: Tensor = add(L, R).view(total.shape)
    return result.mT if turned else result


def _t(step: Step, x: Tensor) -> Tensor:
    return x.mT if x.ndim == 3 else x


def _view(step: Step, x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.reshape(len(x), *shape)


def _expand(step: Step, x: Tensor, shape: Sequence[int]) -> Tensor:
    return _raise(x, len(shape)).expand(len(x), *shape)


def _sum(step: Step, x: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    ndim = x.ndim - 1
    if not ndim:
        return x
    return x.sum([d % ndim + 1 for d in dims or range(ndim)], keepdim)


def _pointwise(step: Step, *arguments: Any) -> Tensor:
    """Broadcasts from the last dimension on, behind the dimension of the vectors."""
    depends = [isinstance(a, Slot) for a in step.arguments]
    ndim = max(a.ndim - d for a, d in zip(arguments, depends, strict=True) if isinstance(a, Tensor))
    aligned = [_raise(a, ndim) if d else a for a, d in zip(arguments, depends, strict=True)]
    first = aligned[depends.index(True)]
    for i, constant in enumerate(aligned):
        if depends[i] or not isinstance(constant, Tensor) or not constant.ndim == ndim == 2:
            continue
        if first.stride(-1) != 1 and constant.stride(-1) == 1:
            if i not in step.aligned:
                step.aligned[i] = constant.mT.contiguous().mT
            aligned[i] = step.aligned[i]
    result: Tensor = step.function(*aligned, **step.keywords)
    return result


def _log_softmax_backward(step: Step, g: Tensor, log_p: Tensor, dim: int, dtype: Any) -> Tensor:
    """g - p Σ g."""
    if 1 not in step.aligned:
        step.aligned[1] = log_p.exp()
    total = g.sum(dim % log_p.ndim + 1, keepdim=True)
    return torch.addcmul(g, step.aligned[1], total, value=-1).to(dtype)


def _raise(x: Tensor, ndim: int) -> Tensor:
    """x (c, …) with `ndim` dimensions behind the first, by ones there."""
    return x.reshape(len(x), *[1] * (ndim + 1 - x.ndim), *x.shape[1:])


RULES: dict[Any, Callable[..., Tensor]] = {
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.t.default: _t,
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.expand.default: _expand,
    aten.sum.dim_IntList: _sum,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
}
