"""Guards: whether the products of an operator are those of a curvature, at the price of a few.

Each takes an operator and returns a sentence on what it found, or raises a `CheckError` that names
the cause and the way out. `LossCurvature.verify` asks those of its curvature before the first
product, the layout stage once an array, and `check` prints them. The first three are `OF_ANY`
curvature's, the last is the Hessian's.

- `same_twice`: the loss is finite, the same again, and leaves no trace in the network.
- `reached`: no parameter that the loss depends on lacks a gradient.
- `combined`: the loss of two batches together is the weighted mean of theirs.
- `second_derivative`: H v is what differences of gradients say, (∇L(θ + hv) - ∇L(θ - hv)) / 2h, and
  uᵀHv = vᵀHu.

The vectorised strategies are compared with products one by one where they are used
(`linear_map.compare`), and a worker's operator with the one that was laid out by `fingerprint`.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from skerch.curvature.batching import join_batches, split_batch, tensor_shapes
from skerch.curvature.differences import (
    PRECISIONS,
    at_copies,
    compare_beside,
    difference,
    direction,
    errors,
    gaussian,
    loss_and_gradient,
    nudge,
)
from skerch.errors import SkerchError
from skerch.rounding import rounding

if TYPE_CHECKING:
    from skerch.curvature.operator import LossCurvature

FEW = 32  # examples, for what costs more in float64
LOST = 0.1  # share of a product that rounding may take


class CheckError(SkerchError):
    """A loss that has no Hessian, or whose products would not be the Hessian's."""


def same_twice(op: LossCurvature) -> str:
    """The loss is finite, comes out the same again, and changes nothing in the network."""
    state = dict(op.model.named_parameters()) | dict(op.model.named_buffers())
    state = {name: tensor for name, tensor in state.items() if tensor.layout == torch.strided}
    before = {name: tensor.detach().clone() for name, tensor in state.items()}
    first, second = op.loss(), op.loss()
    for name, tensor in state.items():
        if not bool(((tensor == before[name]) | (before[name] != before[name])).all()):
            with torch.no_grad():
                tensor.copy_(before[name])
            raise CheckError(
                f"The forward pass changes {name}; batch norm, spectral norm and the like must use "
                "what they keep (model.eval()), or keep nothing (track_running_stats=False)."
            )
    if not math.isfinite(first):
        raise CheckError(
            f"The loss is {first}; check the data and the learning rate, or take an earlier step."
        )
    if abs(first - second) > min(10 * torch.finfo(op.precision).eps, 0.01) * abs(first):
        raise CheckError(
            f"The loss of the same parameters and data is {first!r} and then {second!r}; switch "
            "off dropout and other randomness (model.eval()), and give the same batches each time "
            "(no shuffling, no random augmentation)."
        )
    return f"the loss is {first:.6g}, the same twice, and leaves no trace in the model"


def reached(op: LossCurvature) -> str:
    """Parameters of which the loss of the first batch has no gradient do not change it either."""
    one = op.restricted(op.first_batch())
    _, grads = one.gradients()
    without = {n: p for (n, p), g in zip(op.params.items(), grads, strict=True) if g is None}
    if not without:
        return "the gradient reaches every parameter"
    before = one.loss()

    def loss_beside(wide: LossCurvature) -> float:
        nudge([wide.params[name] for name in without])
        return wide.loss()

    after = at_copies(op, op.first_batch(), None, loss_beside)
    names = ", ".join(list(without)[:3]) + (", …" if len(without) > 3 else "")
    if abs(after - before) > 0.1 * rounding(op.precision) * abs(before):
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


def combined(op: LossCurvature) -> str:
    """The first and the last batch as one have the weighted mean of their losses and gradients."""
    if op.microbatch_size and op.microbatch_unsafe:
        return "whether microbatches combine is not asked (microbatch_unsafe)"
    batches = op.data_batches()
    weight, first = next(batches)
    rest = deque(batches, maxlen=1)
    if not rest:
        return "all the data are in one batch"
    ((last_weight, last),) = rest
    share = weight / (weight + last_weight)
    try:
        both = join_batches(first, last)
        error = _apart(op, (both, first, last), share)
    except Exception as reason:  # batches that do not fit, or whatever a loss of them raises
        return f"whether batches combine is not known, as two cannot be joined ({reason})"
    alike = tensor_shapes(first) == tensor_shapes(last)
    if alike and weight == last_weight == op.batch_weight(both):
        return "batches weigh alike"  # and were joined along something else than examples
    allowed = rounding(op.precision)
    if error > rounding(torch.float32):  # in half precisions, and under autocast, by rounding?
        with suppress(Exception):
            error = at_copies(
                op,
                first,
                torch.float64,
                lambda wide: _apart(wide, (both, first, last), share, torch.float64),
            )
            allowed = rounding(torch.float32)
    if error > allowed:
        raise CheckError(
            "Batches do not combine: the loss of two together is not the mean of theirs, weighted "
            f"by batch_weight; it is off by {error:.1g}. Where the loss is a sum, take the mean; "
            "where its mean is not over examples (tokens, class weights), give a batch_weight of "
            "what it divides by; where examples depend on each other (batch norm without running "
            "statistics, contrastive losses), put all the data in one batch (batch_size: null)."
        )
    return f"batches combine to {error:.0e}"


def _apart(
    op: LossCurvature, batches: Sequence[Any], share: float, dtype: torch.dtype | None = None
) -> float:
    """How far the loss and gradient of the first batch are from the mean of the other two's."""
    parts = [loss_and_gradient(op.restricted(batch, dtype)) for batch in batches]
    error = 0.0
    for joint, a, b in zip(*parts, strict=True):
        scale = share * float(a.norm()) + (1 - share) * float(b.norm())
        off = float((joint - share * a - (1 - share) * b).norm())
        error = max(error, off / max(scale, 1e-300))
    return error


def second_derivative(op: LossCurvature) -> str:
    """On the first batch, products are finite, symmetric, and those of differences of gradients.

    The latter is asked of a few examples. Their products are held against differences at θ. Where
    these tell another product, as they do where a unit is exactly at its kink or float32 has lost
    digits, both are taken anew in float64, beside θ: what is wrong there is wrong, and the rest is
    rounding.
    """
    batch = op.first_batch()
    one, few = op.restricted(batch), few_of(op, batch)
    u, v = (direction(one, index) for index in range(2))
    Hu, Hv = (one @ u).double(), (one @ v).double()
    if not bool(torch.isfinite(Hu).all() and torch.isfinite(Hv).all()):
        raise CheckError(
            "A Hessian product is not finite, though the loss is; look for an operation whose "
            "derivative is infinite there, such as a square root or a norm at zero."
        )
    scale = max(float(Hu.norm()), float(Hv.norm()), 1e-300)
    asymmetry = abs(float(u.double() @ Hv - v.double() @ Hu)) / scale
    told = f"products are finite, symmetric to {asymmetry:.0e}, and"
    alike = "those of differences of gradients to"
    H_few_v = Hv if few is batch else (op.restricted(few) @ v).double()
    with suppress(Exception):  # whatever a network that has no float64 raises
        error, slope = at_copies(
            op,
            few,
            torch.float64,
            lambda wide: errors(difference(wide, v), H_few_v, wide),
        )
        if max(error, slope, asymmetry) <= min(
            rounding(op.precision), PRECISIONS[torch.float64].wrong
        ):
            return f"{told} {alike} {error:.0e}"
    beside = compare_beside(op, few, v)
    if beside is None:
        if asymmetry > rounding(op.precision):
            raise CheckError(
                f"|uᵀHv - vᵀHu| is {asymmetry:.1g} ‖u‖‖Hv‖, and H is symmetric: an operation of "
                "this model has a wrong second derivative, or rounding has lost it. Replace the "
                "operation, or try float64 (hessian.dtype=float64)."
            )
        return f"{told} not comparable with differences of gradients, which do not settle (kinks)"
    error, slope, exact = beside
    wrong = PRECISIONS[op.dtype if exact is None else torch.float64].wrong
    if error > wrong:
        raise CheckError(
            f"H v differs from the difference of gradients along v by {error:.1g} of its norm: an "
            "operation of this model has a wrong or incomplete second derivative (weight_norm, "
            "once_differentiable, detach, straight-through estimators, fused losses that make "
            "gradients in the forward pass). Replace it."
        )
    if slope > wrong:
        raise CheckError(
            f"The gradient along v differs from the difference of losses by {slope:.1g} of it: an "
            "operation of this model has a backward pass that is not its derivative (detach, "
            "straight-through estimators, hooks on gradients). Replace it."
        )
    lost = (
        asymmetry
        if exact is None
        else float((H_few_v - exact).norm() / exact.norm().clamp(min=scale))
    )
    if max(lost, asymmetry) > max(LOST, rounding(op.precision)):
        raise CheckError(
            f"Rounding takes {max(lost, asymmetry):.1g} of the norm of H v. Take float64 "
            "(hessian.dtype=float64), or a step whose loss is not as near to zero."
        )
    digits = "" if exact is None else f", with {lost:.0e} of rounding"
    return f"{told} {alike} {error:.0e} beside θ{digits}"


OF_ANY: tuple[Callable[[LossCurvature], str], ...] = (same_twice, reached, combined)
GUARDS = (*OF_ANY, second_derivative)  # the Hessian's


def layers(op: LossCurvature, words: str) -> str:
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


def fingerprint(op: LossCurvature) -> dict[str, float]:
    """The loss, and ‖Hv‖ and vᵀHv for one v: what a worker's operator must share with the array."""
    v = gaussian((op.shape[0],), 2, op.vector())
    v /= v.norm()
    Hv = (op @ v).double()
    return {"loss": op.loss(), "‖Hv‖": float(Hv.norm()), "vᵀHv": float(v.double() @ Hv)}


def few_of(op: LossCurvature, batch: Any) -> Any:
    """A few of a batch's examples; all where they cannot be taken apart, or have no loss."""
    with suppress(Exception):  # whatever a loss that wants another number of examples raises
        few = split_batch(batch, FEW)[0]
        if math.isfinite(op.restricted(few).loss()):
            return few
    return batch
