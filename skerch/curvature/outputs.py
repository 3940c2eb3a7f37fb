"""Curvatures Jᵀ B J, for the Jacobian J of a network's output z(θ) and a B on the outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from skerch.curvature import output_checks
from skerch.curvature.batching import to_device
from skerch.curvature.checks import OF_ANY
from skerch.curvature.finite_difference import DifferentiableCurvature, central_difference
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


class OutputCurvature(DifferentiableCurvature):
    """A = Σ_b w_b J_bᵀ B_b J_b / Σ_b w_b for the outputs z_b(θ) of batches and their Jacobians J_b.

    A subclass says by `output_product` what B is. Products are exact: u ↦ Jᵀ u is linear, so the
    gradient of its product with v is J v, in reverse mode alone (Townsend 2017, "A new trick for
    calculating Jacobian vector products"), and its graph serves all vectors of a block.

    `forward_fn(model, batch)` is the output, of any shape, and `loss_of_output_fn(output, batch)`
    the loss. `batch_weight` is by default what the loss of outputs carries (what its mean divides
    by), and otherwise the number of examples. With `method="finite_difference"` J v is a difference
    of outputs. Other options, attributes and errors are those of `HessianOperator`.
    """

    checks = (*OF_ANY, output_checks.apart, output_checks.jacobian)
    checks_of_differences = (*OF_ANY, output_checks.apart)

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
        return cls._of_outputs(model, dataloader, loss.forward, loss.of_output, **options)

    @classmethod
    def _of_outputs(cls, *arguments: Any, **options: Any) -> OutputCurvature:
        return cls(*arguments, **options)

    @abstractmethod
    def output_product(self, output: Tensor, batch: Any) -> OutputProduct:
        """u ↦ B u for u of the output's shape; the output has no graph."""

    def output(self, batch: Any, memory_format: str) -> Tensor:
        """z of a batch on the device, with its graph."""
        z = run(self.model, self.forward_fn, batch, memory_format, self.derivatives)
        if not isinstance(z, Tensor) or not z.is_floating_point():
            raise SkerchError(
                "forward_fn must return a tensor of real outputs, and returned "
                f"{z.dtype if isinstance(z, Tensor) else type(z).__name__}; take the tensor that "
                "the loss is of."
            )
        return z

    def _by_autograd(self, batch: Any, memory_format: str) -> BatchCurvature:
        """With J v from the graph of u ↦ Jᵀ u."""
        batch = to_device(batch, self.device)
        z = self.output(batch, memory_format)
        u = torch.zeros_like(z).requires_grad_()
        pulled: Sequence[Tensor | None] = [None] * len(self.params)
        if z.requires_grad:
            params = list(self.params.values())
            pulled = torch.autograd.grad(z, params, u, create_graph=True, allow_unused=True)
        pullback = [p for p in pulled if p is not None]

        def jacobian(vector: Tensors) -> Tensor:
            (Jv,) = torch.autograd.grad(pullback, u, vector, retain_graph=True, **ZEROS)
            return Jv

        names = [n for n, p in zip(self.params, pulled, strict=True) if p is not None]
        return self._assembled(batch, z, names, jacobian)

    def _by_difference(self, batch: Any, memory_format: str) -> BatchCurvature:
        """With J v from differences of outputs, without a graph."""
        batch = to_device(batch, self.device)
        z = self.output(batch, memory_format)
        params, step = list(self.params.values()), self.fd_eps

        def outputs() -> list[Tensor]:
            with torch.no_grad():
                return [self.output(batch, memory_format)]

        def jacobian(vector: Tensors) -> Tensor:
            return central_difference(outputs, params, vector, step)[0].to(z.dtype)

        return self._assembled(batch, z, list(self.params), jacobian)

    def _assembled(
        self, batch: Any, z: Tensor, names: list[str], jacobian: Callable[[Tensors], Tensor]
    ) -> BatchCurvature:
        """v ↦ Jᵀ B J v of the outputs z, by `jacobian`, v ↦ J v, in the named parameters."""
        output = z.detach()
        B, params = self.output_product(output, batch), [self.params[name] for name in names]

        def product(vector: Tensors) -> tuple[Tensor, ...]:
            products: tuple[Tensor, ...] = torch.autograd.grad(
                z, params, B(jacobian(vector)), retain_graph=True, **ZEROS
            )
            return products

        loss = float(self.loss_of_output_fn(output, batch).detach())
        return BatchCurvature(loss, bool(names), names, LinearMap(product, params, NO_JACOBIAN))
