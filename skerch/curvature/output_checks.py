"""Guards of curvatures Jᵀ B J beside those of any curvature (`skerch.curvature.checks`).

- `apart`: the loss depends on the parameters by the network's output alone.
- `jacobian`: A v is Jᵀ B w for the difference w = (z(θ + hv) - z(θ - hv)) / 2h of outputs, and
  vᵀA v = wᵀB w.
- `loss_product`: the closed form of the loss's second derivative is what autograd has for it.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from skerch.curvature.batching import to_device
from skerch.curvature.checks import CheckError, few_of
from skerch.curvature.differences import PRECISIONS, at_copies, direction, gaussian, nudge
from skerch.curvature.finite_difference import central_difference
from skerch.curvature.losses import by_autograd, differentiating
from skerch.rounding import rounding

if TYPE_CHECKING:
    from skerch.curvature.ggn import GGNOperator
    from skerch.curvature.outputs import OutputCurvature


def apart(op: OutputCurvature) -> str:
    """The loss of a detached output has no gradient in the parameters."""
    batch = to_device(op.first_batch(), op.device)
    z = op.output(batch, op.memory_format).detach().requires_grad_()
    loss = op.loss_of_output_fn(z, batch)
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, list(op.params.values()), allow_unused=True)
        names = [name for name, g in zip(op.params, grads, strict=True) if g is not None]
        if names:
            raise CheckError(
                f"The loss depends on {', '.join(names[:3])} also apart from the network's output "
                "(weight decay, other penalties), which Jᵀ B J leaves out; take that part out of "
                "the loss, and add it to this operator as one of its own."
            )
    return "the loss is one of the network's output alone"


def jacobian(op: OutputCurvature) -> str:
    """On a few examples of the first batch, products are finite, and those of differences.

    The differences are taken in float64 beside θ, away from kinks, where a network can do that.
    """
    batch = few_of(op, op.first_batch())
    one = op.restricted(batch)
    v = direction(one, 0)
    Av = (one @ v).double()
    if not bool(torch.isfinite(Av).all()):
        raise CheckError(
            "A product is not finite, though the loss is; look for an operation whose derivative "
            "is infinite there, such as a square root or a norm at zero."
        )
    for dtype in dict.fromkeys((torch.float64, op.precision)):
        for beside in (True, False):  # for networks that are not finite beside θ
            try:
                error, settled, exact = at_copies(op, batch, dtype, partial(_apart, v, beside))
            except Exception:  # whatever a network that has no such dtype raises
                break
            if error > PRECISIONS[dtype].wrong and settled:
                raise CheckError(
                    "Products differ from those of differences of the network's outputs by "
                    f"{error:.1g} of their norm: an operation of this model has a backward pass "
                    "that is not its derivative (detach, straight-through estimators, hooks on "
                    "gradients). Replace it."
                )
            if error <= PRECISIONS[dtype].wrong:
                lost = float((Av - exact).norm() / exact.norm().clamp(min=1e-300))
                return (
                    f"products are finite and those of differences of outputs to {error:.0e}, with "
                    f"{lost:.0e} of rounding"
                )
    return "products are not comparable with differences of outputs, which do not settle (kinks)"


def _apart(v: Tensor, beside: bool, wide: Any) -> tuple[float, bool, Tensor]:
    """The relative error of A v, whether differences agree on it, and A v at θ."""
    v, how = v.to(wide.dtype), PRECISIONS[wide.precision]
    exact = (wide @ v).double()
    params = list(wide.params.values())
    if beside:
        nudge(params)
    batch, Av = wide.first_batch(), wide @ v
    with differentiating():
        z = wide.output(batch, wide.memory_format)
    size = max(float(wide.vector().norm()), 1e-3)
    pieces = torch.split(v, [p.numel() for p in params])
    vector = [piece.view_as(p) for piece, p in zip(pieces, params, strict=True)]
    w, again = (
        central_difference(
            lambda: [wide.output(batch, wide.memory_format)], params, vector, step * size
        )[0]
        for step in (how.step, how.other)
    )
    Bw = wide.output_product(z.detach(), batch)(w)
    grads = torch.autograd.grad(z, params, Bw, allow_unused=True, materialize_grads=True)
    pulled = torch.cat([g.to_dense().flatten() for g in grads])
    error = float((Av - pulled).norm()) / max(float(Av.norm()), float(pulled.norm()), 1e-300)
    scale = max(float(w.norm() * Bw.norm()), 1e-300)
    error = max(error, abs(float(v @ Av) - float((w * Bw).sum())) / scale)
    settled = float((w - again).norm()) <= error / 4 * float(w.norm())
    return error, settled and math.isfinite(error), exact


def loss_product(op: GGNOperator) -> str:
    """On a few examples of the first batch, a loss's closed form is ∇²L(z) u by autograd."""
    if op.loss_hvp == "autograd":
        return "the loss's second derivative is autograd's"
    batch = to_device(few_of(op, op.first_batch()), op.device)
    output = op.output(batch, op.memory_format).detach()
    u = gaussian(output.shape, 3, output)
    error = math.inf
    for dtype in dict.fromkeys((torch.float64, output.dtype)):
        with suppress(Exception):  # whatever a loss that knows no float64 raises
            z, data = output.to(dtype), to_device(batch, op.device, dtype)
            right = by_autograd(op.loss_of_output_fn, z, data)(u.to(dtype))
            found = op.output_product(z, data)(u.to(dtype))
            error = float((found - right).norm()) / max(float(right.norm()), 1e-300)
            allowed = rounding(dtype)
            break
    else:
        return "the loss's second derivative cannot be had by autograd, and is taken as it is"
    if not error <= allowed:
        raise CheckError(
            f"The closed form of the loss's second derivative differs from autograd's by "
            f"{error:.1g} of its norm; mend the loss's hvp, or set loss_hvp='autograd'."
        )
    return f"the loss's closed form is what autograd has, to {error:.0e}"
