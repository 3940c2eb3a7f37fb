"""Losses in two steps: a network's output, and the loss of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from skerch.curvature.batching import count_examples
from skerch.curvature.losses.batches import BatchWeight, LossFn
from skerch.curvature.losses.closed_forms import ClosedForm, Criterion
from skerch.errors import SkerchError

ForwardFn = Callable[[Module, Any], Tensor]
LossOfOutputFn = Callable[[Tensor, Any], Tensor]
OutputProduct = Callable[[Tensor], Tensor]
ZEROS: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}


class Loss:
    """The loss of_output(forward(model, batch), batch) of a batch.

    `batch_weight` is that of `of_output`, or None where it has none.
    """

    def __init__(self, forward: ForwardFn, of_output: LossOfOutputFn):
        self.forward, self.of_output = forward, of_output
        self.batch_weight: BatchWeight | None = getattr(of_output, "batch_weight", None)

    def __call__(self, model: Module, batch: Any) -> Tensor:
        return self.of_output(self.forward(model, batch), batch)


class LossOfOutput:
    """criterion(output, target(batch)), with the closed forms of the criterion.

    A reduction by the mean has a `batch_weight`, what it divides by; for a sum that is None.
    """

    def __init__(self, criterion: Criterion, closed: ClosedForm, target: Callable[[Any], Tensor]):
        self.criterion, self.closed, self.target = criterion, closed, target
        self.batch_weight = self._divisor if closed.reduction == "mean" else None

    def __call__(self, output: Tensor, batch: Any) -> Tensor:
        return self.criterion(output, self.target(batch))

    def hvp(self, output: Tensor, batch: Any, u: Tensor) -> Tensor:
        """The second derivative of the loss in the output times u, of the output's shape."""
        return self.closed.hvp(output, self.target(batch), u)

    def _divisor(self, batch: Any) -> float:
        target = self.target(batch)
        if not isinstance(target, Tensor):
            return count_examples(batch)
        return self.closed.divisor(target)


def example_masses(loss: LossOfOutputFn, output: Tensor, batch: Any) -> Tensor:
    """What each example, along dimension 0 of outputs, weighs in the mean loss, of shape (n,).

    It is 1/n where nothing is known of the loss.
    """
    m = output.new_tensor(1 / len(output))
    if isinstance(loss, LossOfOutput):
        m = loss.closed.mass(output, loss.target(batch))
    return m.flatten(1).sum(1) if m.ndim > 1 else m.expand(len(output))


def outer_products(r: Tensor, dims: Sequence[int]) -> OutputProduct:
    """u ↦ the mean over samples r of r rᵀ u, for r (samples, *shape), rᵀ u summed over `dims`."""
    along = [dim % (r.ndim - 1) + 1 for dim in dims]

    def product(u: Tensor) -> Tensor:
        shares = r * u
        for dim in along:
            shares = shares.sum(dim, keepdim=True)
        return (r * shares).mean(0).to(u.dtype)

    return product


def in_two_steps(loss_fn: LossFn, model: Module) -> Loss:
    """A loss as `forward` and `of_output`: its own, or what it does in calling the model once.

    The loss of an output is then that of `loss_fn` with the model's forward pass left out.
    Raises SkerchError, there or in use, for a loss that calls the model otherwise.
    """
    if hasattr(loss_fn, "forward") and hasattr(loss_fn, "of_output"):
        return Loss(loss_fn.forward, loss_fn.of_output)

    def forward(model: Module, batch: Any) -> Tensor:
        calls: list[Any] = []
        original = model.forward

        def record(*args: Any, **kwargs: Any) -> Any:
            calls.append(original(*args, **kwargs))
            return calls[-1]

        _meanwhile(model, record, loss_fn, batch)
        if len(calls) != 1 or not isinstance(calls[0], Tensor):
            found = f"{len(calls)} times"
            if len(calls) == 1:
                found = f"once, for a {type(calls[0]).__name__}"
            raise SkerchError(
                "This curvature needs the network's output apart from the loss, and loss_fn calls "
                f"the model {found}, not once for a tensor; give a loss with the methods "
                "forward(model, batch) and of_output(output, batch), as supervised_loss makes."
            )
        return calls[0]

    def of_output(output: Tensor, batch: Any) -> Tensor:
        return _meanwhile(model, lambda *args, **kwargs: output, loss_fn, batch)

    loss = Loss(forward, of_output)
    loss.batch_weight = getattr(loss_fn, "batch_weight", None)
    return loss


def _meanwhile(model: Module, forward: Callable[..., Any], loss_fn: LossFn, batch: Any) -> Tensor:
    """The loss while the model has another forward pass."""
    before = vars(model).get("forward")
    model.forward = forward
    try:
        return loss_fn(model, batch)
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def by_autograd(loss: LossOfOutputFn, output: Tensor, batch: Any) -> OutputProduct:
    """u ↦ ∇²L(z) u by reverse mode twice."""
    z = output.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(z, batch), z, create_graph=True, **ZEROS)
    if not slope.requires_grad:  # a loss that is linear in the outputs
        return torch.zeros_like

    def product(u: Tensor) -> Tensor:
        (Hu,) = torch.autograd.grad(slope, z, u, retain_graph=True, **ZEROS)
        return Hu

    return product
