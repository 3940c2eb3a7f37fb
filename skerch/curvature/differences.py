"""Differences of losses and gradients, which tell products and gradients that are wrong.

H v is (∇L(θ + hv) - ∇L(θ - hv)) / 2h, and gᵀv is (L(θ + hv) - L(θ - hv)) / 2h. They are taken in
float64, where a network can do that, at copies of its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from skerch.curvature.parameters import as_precision

if TYPE_CHECKING:
    from skerch.curvature.operator import LossCurvature

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Precision:
    """How well differences of gradients tell a product in a dtype."""

    step: float  # along v, relative to ‖θ‖
    other: float  # a step whose differences are the same unless they tell nothing
    wrong: float  # relative error that rounding does not explain …
    small: float  # … of a parameter's rows of H v, of at least this share of its norm


PRECISIONS = {
    torch.float64: _Precision(2e-9, 6e-8, 1e-3, 0.01),
    torch.float32: _Precision(3e-3, 8e-4, 0.03, 1.0),  # where a network knows no other
}


def compare_beside(
    op: LossCurvature, batch: Any, v: Tensor
) -> tuple[float, float, Tensor | None] | None:
    """The errors of products and gradients beside θ, and H v at θ, all in float64.

    In the operator's dtype, without that H v, if the network has no other. None where they tell
    nothing, as other steps give other differences.
    """
    for dtype in dict.fromkeys((torch.float64, op.dtype)):
        for nudged in (True, False):  # for networks that are not finite beside θ

            def compare(
                wide: LossCurvature, nudged: bool = nudged
            ) -> tuple[Tensor, Tensor, Difference, Difference, float, float]:
                exact = (wide @ v.to(wide.dtype)).double()
                if nudged:
                    nudge(list(wide.params.values()))
                Hv = (wide @ v.to(wide.dtype)).double()
                found, again = difference(wide, v), difference(wide, v, other=True)
                return exact, Hv, found, again, *errors(found, Hv, wide)

            try:
                exact, Hv, found, again, error, slope = at_copies(op, batch, dtype, compare)
            except Exception:  # whatever a network that has no such dtype raises
                break
            change = float((found.curvature - again.curvature).norm()) + found.noise + again.noise
            apart = abs(again.slope - again.expected)
            if not abs(found.slope - again.slope) < min(apart, abs(again.slope)) / 10:
                slope = 0.0  # or there are too few digits to say so
            settled = change <= float((found.curvature - Hv).norm()) / 4
            if math.isfinite(error + slope) and (settled or error <= PRECISIONS[dtype].wrong):
                return error, slope, exact if dtype == torch.float64 else None
    return None


@dataclass(frozen=True)
class Difference:
    """Of losses and gradients on both sides of θ, along v."""

    curvature: Tensor  # (N,), (∇L(θ + hv) - ∇L(θ - hv)) / 2h
    noise: float  # the part of its norm that may be rounding
    slope: float  # (L(θ + hv) - L(θ - hv)) / 2h
    expected: float  # gᵀv


def difference(wide: LossCurvature, v: Tensor, other: bool = False) -> Difference:
    """By the step of the operator's dtype, or by the other one."""
    how = PRECISIONS[wide.dtype]
    step = (how.other if other else how.step) * max(float(wide.vector().double().norm()), 1e-3)
    at = [p.detach().clone() for p in wide.params.values()]
    pieces = torch.split(v.to(wide.dtype), [p.numel() for p in at])
    sides = []
    for h in (step, -step):
        for p, center, piece in zip(wide.params.values(), at, pieces, strict=True):
            p.data = center + h * piece.view_as(center)
        sides.append(loss_and_gradient(wide))
    for p, center in zip(wide.params.values(), at, strict=True):
        p.data = center
    (ahead, g), (behind, f) = sides
    eps = 100 * torch.finfo(wide.dtype).eps / step
    noise = eps * float(g.norm() + f.norm())
    slope, expected = float(ahead - behind) / (2 * step), float((g + f) @ v.double()) / 2
    return Difference((g - f) / (2 * step), noise, slope, expected)


def errors(found: Difference, Hv: Tensor, wide: LossCurvature) -> tuple[float, float]:
    """Relative errors of H v, the largest of a parameter's rows, and of gᵀv."""
    sizes = [p.numel() for p in wide.params.values()]
    whole = PRECISIONS[wide.dtype].small * max(
        float(Hv.norm()), float(found.curvature.norm()), 1e-300
    )
    error = max(
        float((x - y).norm()) / (float(x.norm()) + whole)
        for x, y in zip(torch.split(found.curvature, sizes), torch.split(Hv, sizes), strict=True)
    )
    steepest = max(abs(found.slope), abs(found.expected), 1e-300)
    return error, abs(found.slope - found.expected) / steepest


class _Meanwhile(nn.Module):
    """A network, and work that is done while it has other tensors."""

    def __init__(self, model: nn.Module, work: Callable[[], Any]):
        super().__init__()
        self.model = model
        self.work = work

    def forward(self) -> Any:
        return self.work()


def at_copies(
    op: LossCurvature,
    batch: Any,
    dtype: torch.dtype | None,
    work: Callable[[LossCurvature], Result],
) -> Result:
    """What work(operator) gives for the operator of a batch at copies of the network's tensors.

    They are in `dtype`, as the batch is, if given. The network's own stay untouched: even another
    dtype of a parameter, restored after, would cut it off from graphs that somebody else holds.
    """
    wide = op.restricted(batch, dtype)
    state = {**dict(op.model.named_parameters()), **dict(op.model.named_buffers())}
    tensors = {
        name: (tensor.detach() if dtype is None else as_precision(tensor.detach(), dtype)).clone()
        for name, tensor in state.items()
    }
    wide.params = {name: tensors[name].requires_grad_() for name in op.params}  # type: ignore[misc]

    def within() -> Result:
        with _Wide() if dtype == torch.float64 else nullcontext():
            return work(wide)

    named = {f"model.{name}": tensor for name, tensor in tensors.items()}
    result: Result = functional_call(_Meanwhile(op.model, within), named, ())
    return result


class _Wide(TorchFunctionMode):
    """Within, what a network converts to float32 and the like becomes float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return args[0].double()

        def wide(argument: Any) -> Any:
            narrow = isinstance(argument, torch.dtype) and argument.is_floating_point
            return torch.float64 if narrow else argument

        return func(*map(wide, args), **{k: wide(a) for k, a in (kwargs or {}).items()})


def nudge(parameters: list[Any]) -> None:
    """Move parameters by a tenth of themselves, or a hundredth, in new memory."""
    for index, parameter in enumerate(parameters):
        noise = gaussian(parameter.shape, index, parameter)
        parameter.data = parameter.data + 0.1 * (parameter.data.abs() + 0.1) * noise


def loss_and_gradient(one: LossCurvature) -> list[Tensor]:
    """The loss (1,) and the gradient (N,) of an operator of one batch, in float64."""
    loss, grads = one.gradients()
    parts = [
        (torch.zeros_like(p) if g is None else g.detach().to_dense()).double().flatten()
        for p, g in zip(one.params.values(), grads, strict=True)
    ]
    return [loss.detach().double().reshape(1), torch.cat(parts)]


def direction(one: LossCurvature, index: int) -> Tensor:
    """A unit vector, always the same one for an index, in which all parameters weigh alike.

    Of embeddings it leaves out padding, to which torch gives no gradient, whatever the loss.
    """
    parts = [gaussian(p.shape, index, p) for p in one.params.values()]
    for module in one.model.modules():
        for p, part in zip(one.params.values(), parts, strict=True):
            if isinstance(module, nn.Embedding) and module.weight is p:
                part[[] if module.padding_idx is None else module.padding_idx] = 0
    units = [part.flatten() / part.double().norm().clamp(min=1e-300) for part in parts]
    return torch.cat(units).to(one.dtype) / math.sqrt(len(units))


def gaussian(shape: tuple[int, ...], index: int, like: Tensor) -> Tensor:
    """A Gaussian tensor, always the same one for an index."""
    generator = torch.Generator().manual_seed(index)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(like.device, like.dtype)
