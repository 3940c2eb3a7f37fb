"""Curvatures Jᵀ B J, for the Jacobian J of a network's output z(θ) and a B on the outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from skerch.curvature import checks, output_checks
from skerch.curvature.batching import to_device
from skerch.curvature.functional import Function, as_module
from skerch.curvature.losses import (
    ForwardFn,
    Loss,
    LossFn,
    LossOfOutputFn,
    OutputProduct,
    in_two_steps,
    run,
)
from skerch.curvature.operator import BatchCurvature, LossCurvature
from skerch.curvature.strategies.linear_map import LinearMap, Tensors
from skerch.errors import SkerchError

ZEROS: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
NO_JACOBIAN = (
    "The Jacobian of this model's output cannot be had: {}. Replace that operation by others with "
    "the same values, or sketch the rest of the network by param_filter."
)


class OutputCurvature(LossCurvature):
    """A = Σ_b w_b J_bᵀ B_b J_b / Σ_b w_b for the outputs z_b(θ) of batches and their Jacobians J_b.

    A subclass says by `output_product` what B is. Products are exact: u ↦ Jᵀ u is linear, so the
    gradient of its product with v is J v, in reverse mode alone (Townsend 2017, "A new trick for
    calculating Jacobian vector products"), and its graph serves all vectors of a block.

    `forward_fn(model, batch)` is the output, of any shape, and `loss_of_output_fn(output, batch)`
    the loss. `batch_weight` is by default what the loss of outputs carries (what its mean divides
    by), and otherwise the number of examples. Other options, attributes and errors are those of
    `HessianOperator`.
    """

    checks = (*checks.OF_ANY, output_checks.apart, output_checks.jacobian)

    def __init__(
        self,
        model: Module | Function,
        dataloader: Iterable[Any],
        forward_fn: ForwardFn,
        loss_of_output_fn: LossOfOutputFn,
        **options: Any,
    ):
        super().__init__(model, dataloader, Loss(forward_fn, loss_of_output_fn), **options)
        self.forward_fn, self.loss_of_output_fn = forward_fn, loss_of_output_fn

    @classmethod
    def of_loss(
        cls, model: Module | Function, dataloader: Iterable[Any], loss_fn: LossFn, **options: Any
    ) -> LossCurvature:
        model = as_module(model, options.pop("params", None))
        loss = in_two_steps(loss_fn, model)
        options["batch_weight"] = options.get("batch_weight") or loss.batch_weight
        return cls(model, dataloader, loss.forward, loss.of_output, **options)

    @abstractmethod
    def output_product(self, output: Tensor, batch: Any) -> OutputProduct:
        """u ↦ B u for u of the output's shape; the output has no graph."""

    def output(self, batch: Any, memory_format: str) -> Tensor:
        """z of a batch, with its graph."""
        z = run(self.model, self.forward_fn, to_device(batch, self.device), memory_format)
        if not isinstance(z, Tensor) or not z.is_floating_point():
            raise SkerchError(
                "forward_fn must return a tensor of real outputs, and returned "
                f"{z.dtype if isinstance(z, Tensor) else type(z).__name__}; take the tensor that "
                "the loss is of."
            )
        return z

    def of_batch(self, batch: Any, memory_format: str) -> BatchCurvature:
        batch = to_device(batch, self.device)
        z = self.output(batch, memory_format)
        output = z.detach()
        loss = float(self.loss_of_output_fn(output, batch).detach())
        u = torch.zeros_like(output).requires_grad_()
        grads: Sequence[Tensor | None] = [None] * len(self.params)
        if z.requires_grad:
            grads = torch.autograd.grad(
                z, list(self.params.values()), u, create_graph=True, allow_unused=True
            )
        found = zip(self.params, grads, strict=True)
        reached = {name: g for name, g in found if g is not None and g.requires_grad}
        params, pullback = [self.params[name] for name in reached], list(reached.values())
        B = self.output_product(output, batch)

        def product(vector: Tensors) -> tuple[Tensor, ...]:
            (Jv,) = torch.autograd.grad(pullback, u, vector, retain_graph=True, **ZEROS)
            products: tuple[Tensor, ...] = torch.autograd.grad(
                z, params, B(Jv), retain_graph=True, **ZEROS
            )
            return products

        return BatchCurvature(
            loss, bool(reached), list(reached), LinearMap(product, params, NO_JACOBIAN)
        )
