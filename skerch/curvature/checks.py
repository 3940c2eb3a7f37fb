"""Guards: whether the products of an operator are those of a Hessian, at the price of a few.

Each takes an operator and returns a sentence on what it found, or raises a `CheckError` that names
the cause and the way out. `require` asks all of them; the operator does so before its first
product, the layout stage once a Hessian, and `check` prints them.

- `same_twice`: the loss is finite, the same again, and leaves no trace in the network.
- `reached`: no parameter that the loss depends on lacks a gradient.
- `combined`: the loss of two batches together is the weighted mean of theirs.
- `second_derivative`: H v is what differences of gradients say, (∇L(θ + hv) - ∇L(θ - hv)) / 2h, and
  uᵀHv = vᵀHu.

The vectorised strategies are compared with products one by one where they are used
(`backends.compare`), and a worker's operator with the one that was laid out by `fingerprint`.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from skerch.curvature.batching import join_batches, tensor_shapes
from skerch.errors import SkerchError
from skerch.rounding import rounding

if TYPE_CHECKING:
    from skerch.curvature.hessian import HessianOperator

STEPS = {torch.float64: 1e-8, torch.float32: 3e-3}  # of differences, relative to ‖θ‖
COARSE = 0.03  # relative error of differences of gradients in float32


class CheckError(SkerchError):
    """A loss that has no Hessian, or whose products would not be the Hessian's."""


def require(op: HessianOperator) -> None:
    """Raise the first CheckError of the guards."""
    for guard in GUARDS:
        guard(op)


def same_twice(op: HessianOperator) -> str:
    """The loss is finite, comes out the same again, and changes nothing in the network."""
    state = dict(op.model.named_parameters()) | dict(op.model.named_buffers())
    before = {name: tensor.detach().clone() for name, tensor in state.items()}
    first, second = op.loss(), op.loss()
    for name, tensor in state.items():
        if not bool(((tensor == before[name]) | (before[name] != before[name])).all()):
            with torch.no_grad():
                tensor.copy_(before[name])
            raise CheckError(
                f"The forward pass changes {name}; batch norm and the like must use their running "
                "statistics (model.eval()), or not keep any (track_running_stats=False)."
            )
    if not math.isfinite(first):
        raise CheckError(
            f"The loss is {first}; check the data and the learning rate, or take an earlier step."
        )
    if abs(first - second) > 0.1 * rounding(op.dtype) * abs(first):
        raise CheckError(
            f"The loss of the same parameters and data is {first!r} and then {second!r}; switch "
            "off dropout and other randomness (model.eval()), and give the same batches each time "
            "(no shuffling, no random augmentation)."
        )
    return f"the loss is {first:.6g}, the same twice, and leaves no trace in the model"


def reached(op: HessianOperator) -> str:
    """Parameters of which the loss of the first batch has no gradient do not change it either."""
    one = op.restricted(op.first_batch())
    _, grads = one.gradients()
    without = {n: p for (n, p), g in zip(op.params.items(), grads, strict=True) if g is None}
    if not without:
        return "the gradient reaches every parameter"
    noisy = {
        name: p.detach() + 0.1 * (p.detach().abs() + 0.1) * _gaussian(p.shape, index, p)
        for index, (name, p) in enumerate(without.items())
    }
    before, after = one.loss(), float(_loss_at(one, noisy).detach())
    names = ", ".join(list(without)[:3]) + (", …" if len(without) > 3 else "")
    if abs(after - before) > 0.1 * rounding(op.dtype) * abs(before):
        raise CheckError(
            f"The loss depends on {names}, but its gradient does not reach there: something cuts "
            "the graph (no_grad, detach, .data, a reentrant checkpoint). Mend that, as by "
            "use_reentrant=False, or leave these parameters out by param_filter."
        )
    if len(without) == len(op.params):
        raise CheckError(
            f"The loss does not depend on any of the parameters ({names}); loss_fn must compute it "
            "by the model that it is given."
        )
    return f"the loss does not depend on {names}: zero rows"


def combined(op: HessianOperator) -> str:
    """The first and the last batch as one have the weighted mean of their losses and gradients."""
    batches = op.data_batches()
    weight, first = next(batches)
    rest = deque(batches, maxlen=1)
    if not rest:
        return "all the data are in one batch"
    ((last_weight, last),) = rest
    try:
        both = join_batches(first, last)
        whole = _loss_and_gradient(op.restricted(both))
    except Exception as reason:  # batches that do not fit, or whatever a loss of them raises
        return f"whether batches combine is not known, as two cannot be joined ({reason})"
    alike = tensor_shapes(first) == tensor_shapes(last)
    if alike and weight == last_weight == op.batch_weight(both):
        return "batches weigh alike"  # and were joined along something else than examples
    share = weight / (weight + last_weight)
    parts = [_loss_and_gradient(op.restricted(batch)) for batch in (first, last)]
    error = 0.0
    for joint, a, b in zip(whole, *parts, strict=True):
        scale = share * float(a.norm()) + (1 - share) * float(b.norm())
        off = float((joint - share * a - (1 - share) * b).norm())
        error = max(error, off / max(scale, 1e-300))
    if error > rounding(op.dtype):
        raise CheckError(
            "Batches do not combine: the loss of two together is not the mean of theirs, weighted "
            f"by batch_weight; it is off by {error:.1g}. Where the loss is a sum, take the mean; "
            "where its mean is not over examples (tokens, class weights), give a batch_weight of "
            "what it divides by; where examples depend on each other (batch norm without running "
            "statistics, contrastive losses), put all the data in one batch (batch_size: null)."
        )
    return f"batches combine to {error:.0e}"


def second_derivative(op: HessianOperator) -> str:
    """On the first batch, products are finite, symmetric, and those of differences of gradients."""
    one = op.restricted(op.first_batch())
    u, v = (_gaussian((op.shape[0],), index, one.vector()) for index in range(2))
    u, v = u / u.norm(), v / v.norm()
    Hu, Hv = (one @ u).double(), (one @ v).double()
    if not bool(torch.isfinite(Hu).all() and torch.isfinite(Hv).all()):
        raise CheckError(
            "A Hessian product is not finite, though the loss is; look for an operation whose "
            "derivative is infinite there, such as a square root or a norm at zero."
        )
    scale = max(float(Hu.norm()), float(Hv.norm()), 1e-300)
    asymmetry = abs(float(u.double() @ Hv - v.double() @ Hu)) / scale
    error, settled = _differences(one, v, Hv)
    advice = (
        "PyTorch's second derivative of an operation of this model is wrong or leaves something "
        "out (weight_norm, once_differentiable, fused losses that make gradients in the forward "
        "pass), or it is lost to rounding. Replace the operation, or try float64 "
        "(hessian.dtype=float64)."
    )
    if settled and error > max(10 * rounding(op.dtype), 0 if settled is torch.float64 else COARSE):
        raise CheckError(
            f"H v differs from the difference of gradients along v by {error:.1g} of its norm: "
            f"{advice}"
        )
    if asymmetry > rounding(op.dtype):
        raise CheckError(f"|uᵀHv - vᵀHu| is {asymmetry:.1g} ‖u‖‖Hv‖, and H is symmetric: {advice}")
    told = f"those of differences of gradients to {error:.0e}"
    if not settled:
        told = "not comparable with differences of gradients, which do not settle (kinks)"
    return f"products are finite, symmetric to {asymmetry:.0e}, and {told}"


GUARDS: tuple[Callable[[HessianOperator], str], ...] = (
    same_twice,
    reached,
    combined,
    second_derivative,
)


def layers(op: HessianOperator, words: str) -> str:
    """The layers that do the operation without a second derivative that torch's `words` name."""
    missing = re.search(r"_*(\w+?)_backward", words.replace("aten::", " "))
    wanted = f"{missing[1]}backward".replace("_", "") if missing else "?"
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        made_by = getattr(output, "grad_fn", None)
        if made_by and made_by.name().lower().startswith(wanted):
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda *call, name=name: look(name, call[-1]))
        for name, module in op.model.named_modules()
    ]
    try:
        op.restricted(op.first_batch()).loss()
    finally:
        for hook in hooks:
            hook.remove()
    return f" It is in {', '.join(found)}." if any(found) else ""


def fingerprint(op: HessianOperator) -> dict[str, float]:
    """The loss, and ‖Hv‖ and vᵀHv for one v: what a worker's operator must share with the array."""
    v = _gaussian((op.shape[0],), 2, op.vector())
    v /= v.norm()
    Hv = (op @ v).double()
    return {"loss": op.loss(), "‖Hv‖": float(Hv.norm()), "vᵀHv": float(v.double() @ Hv)}


def _differences(one: HessianOperator, v: Tensor, Hv: Tensor) -> tuple[float, torch.dtype | None]:
    """|difference of gradients - Hv| over the larger of both, and the dtype that it was had in.

    In float64 if the network can do that, else in its own. Where two steps give other differences,
    as across a kink, they tell nothing: None.
    """
    for dtype in dict.fromkeys((torch.float64, one.dtype)):
        if dtype not in STEPS:
            break
        step = STEPS[dtype] * max(float(one.vector().double().norm()), 1e-3)
        try:
            found, noise = _difference(one, v, step, dtype)
        except Exception:  # whatever a network that has no such dtype raises
            continue
        scale = max(float(found.norm()), float(Hv.norm()), noise, 1e-300)
        error = float((found - Hv).norm()) / scale
        if error <= rounding(one.dtype):
            return error, dtype
        again, more_noise = _difference(one, v, step / 4, dtype)
        unsettled = float((found - again).norm()) + noise + more_noise
        return error, dtype if unsettled < error * scale / 4 else None
    return math.nan, None


def _difference(
    one: HessianOperator, v: Tensor, step: float, dtype: torch.dtype
) -> tuple[Tensor, float]:
    """(∇L(θ + step v) - ∇L(θ - step v)) / (2 step), and the part of it that may be rounding."""
    pieces = torch.split(v.to(dtype), [p.numel() for p in one.params.values()])
    state = {**dict(one.model.named_parameters()), **dict(one.model.named_buffers())}
    tensors = {
        name: tensor.detach().to(dtype, copy=True)
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }
    sides = []
    for sign in (step, -step):
        moved = {
            name: (tensors[name] + sign * piece.view_as(tensors[name])).requires_grad_()
            for name, piece in zip(one.params, pieces, strict=True)
        }
        loss = _loss_at(one, tensors | moved, dtype)
        sides.append(_flat(torch.autograd.grad(loss, list(moved.values()), allow_unused=True), one))
    noise = 100 * torch.finfo(dtype).eps * float(sides[0].norm() + sides[1].norm()) / step
    return (sides[0] - sides[1]) / (2 * step), noise


class _Loss(nn.Module):
    """The loss of an operator's first batch, as a module around the operator's."""

    def __init__(self, one: HessianOperator):
        super().__init__()
        self.model = one.model
        self.loss = one.first_loss

    def forward(self, dtype: torch.dtype | None) -> Tensor:
        return self.loss(dtype)


def _loss_at(
    one: HessianOperator, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> Tensor:
    """The loss of the first batch, in `dtype`, where the network has other tensors, by name.

    The network's own stay untouched: even another dtype of a parameter, restored after, would cut
    it off from graphs that somebody else holds.
    """
    named = {f"model.{name}": tensor for name, tensor in tensors.items()}
    loss: Tensor = functional_call(_Loss(one), named, (dtype,))
    return loss


def _loss_and_gradient(one: HessianOperator) -> list[Tensor]:
    """The loss (1,) and the gradient (N,) of an operator's first batch, in float64."""
    loss, grads = one.gradients()
    return [loss.detach().double().reshape(1), _flat(grads, one)]


def _flat(grads: Sequence[Tensor | None], one: HessianOperator) -> Tensor:
    """A gradient by parameter as one vector (N,) in float64, zero where there is none."""
    parts = zip(one.params.values(), grads, strict=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).double().flatten() for p, g in parts]
    )


def _gaussian(shape: tuple[int, ...], index: int, like: Tensor) -> Tensor:
    """A Gaussian tensor, always the same one for an index."""
    generator = torch.Generator().manual_seed(index)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(like.device, like.dtype)
