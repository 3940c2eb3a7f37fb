"""The Hessian of a mean loss, as a linear operator on the selected parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skerch.curvature import checks
from skerch.curvature.finite_difference import DifferentiableCurvature, central_difference
from skerch.curvature.operator import BatchCurvature
from skerch.curvature.strategies.linear_map import DerivativeError, LinearMap, Tensors

ZEROS: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
NO_SECOND_DERIVATIVE = (
    "This model's loss cannot be differentiated twice: {}. Replace that operation by others with "
    "the same values, or sketch the rest of the network by param_filter."
)
NO_GRADIENT = "The gradient beside the parameters cannot be had: {}."


class HessianOperator(DifferentiableCurvature):
    """H = Σ_b w_b ∇²L_b(θ) / Σ_b w_b, of shape (N, N) for the N entries of the parameters θ.

    L_b = loss_fn(model, batch) is the scalar mean over batch b and w_b = batch_weight(batch) what
    that mean divides by, so that H is the Hessian of the mean over all the data, however it is cut
    into batches. Products are exact: the gradient's graph of a batch is built once, applied to all
    vectors of the block (Pearlmutter 1994) and freed before the next batch. θ is ordered as in
    `skerch.curvature.parameters`; entries that the loss does not depend on, or only linearly, have
    zero rows and columns. Vectors are float64 where the parameters are, and else float32: products
    of half precisions are summed over batches in that. The first product costs a few more, by which
    the operator sees that it is the Hessian (`skerch.curvature.checks`). Products change nothing of
    the network and of torch's random numbers, also where they fail.
    A program whose products are on a CPU calls `skerch.curvature.memory.keep_freed_memory` first.

    Args:
        model: used in the mode it is in; put it in eval mode for a loss without dropout and with
            fixed batch statistics. A function (params, x) ↦ y is one, too, with `params`.
        dataloader: batches that can be iterated again and again, such as a list or a DataLoader;
            in a fixed order for reproducible bits. Tensors are moved to the parameters' device.
        loss_fn: loss_fn(model, batch), a tensor of shape ().
        params: the tensors by name of a model that is a function; `param_filter` selects of them.
        batch_weight: w_b ≥ 0, the number of examples by default (`count_examples`); batches of
            weight 0 are left out.
        param_filter: glob patterns on parameter names, those with ! to leave out; or a callable
            of a name and its parameter (`match_names`, `match_regex`); None selects all trainable
            ones.
        full_dataset: whether a product takes all the data; else it takes the next `num_batches`
            batches (one by default) and the product after it those behind them, around and around.
        num_batches: the first so many batches are all the data; None takes all.
        microbatch_size: the number of examples that go through the network at once, in parts of a
            batch; None for whole batches. The Hessian is the same.
        microbatch_unsafe: whether to let a network through whose loss depends on how examples are
            parted, as by batch norm in training mode.
        method: "autograd", or "finite_difference": (∇L(θ + hu) - ∇L(θ - hu)) ‖v‖ / 2h for
            u = v / ‖v‖, which keeps no graph, so that fused kernels of attention may serve.
        fd_eps: h; None for that of the dtype (`finite_difference.STEPS`).
        backend: kept for who computes with vectors; products do not use it.
        strategy: a name in `strategies.STRATEGIES`, or "auto" for the fastest by the clock, chosen
            by `resolve` or by the first block of two or more columns.
        chunk_size: the most vectors that "batched" and "tape" take at once, a bound on their
            memory.
        memory_format: "channels_last" to have images, tensors of shape (n, c, h, w), in that
            format, which convolutions on many processors like better; "preserve" to have them as
            they come; "auto" to settle it with the strategy.
        check: whether to see before the first product that it will be right, and to compare the
            first vectorised block with products one by one; the attribute `compare` is the latter.

    Attributes:
        model: the Module, also where it was given as a function.
        params: the selected parameters by name.
        strategy, chunk_size, memory_format: as given, or as chosen once "auto" is resolved.

    A model that went through `torch.compile` is used as it was before.

    Raises SkerchError for data that can be iterated only once, unknown strategies, parameters of
    several dtypes or devices; in products, for a loss that is not a scalar, that depends on none of
    the parameters or cannot be differentiated twice, for weights that are negative or not finite or
    sum to zero, for parameters that the model has no more, and `CheckError` for products that would
    be wrong.
    """

    checks = checks.GUARDS

    def _by_autograd(self, batch: Any, memory_format: str) -> BatchCurvature:
        """v ↦ (∂g/∂θ)ᵀ v for the gradient g and its graph, of the parameters where it has one.

        A parameter whose gradient has no graph has a zero row in H_b, by symmetry also a column.
        """
        loss, grads = self.batch_gradients(batch, memory_format, create_graph=True)
        found = zip(self.params, grads, strict=True)
        curved = {name: g for name, g in found if g is not None and g.requires_grad}
        params, gradients = [self.params[name] for name in curved], list(curved.values())

        def backward(vector: Tensors) -> tuple[Tensor, ...]:
            """With the graph retained, and zeros for what it does not reach."""
            products: tuple[Tensor, ...] = torch.autograd.grad(
                gradients, params, vector, retain_graph=True, **ZEROS
            )
            return products

        return BatchCurvature(
            float(loss.detach()),
            any(g is not None for g in grads),
            list(curved),
            LinearMap(backward, params, NO_SECOND_DERIVATIVE),
        )

    def _by_difference(self, batch: Any, memory_format: str) -> BatchCurvature:
        """v ↦ (g(θ + hu) - g(θ - hu)) ‖v‖ / 2h for the gradient g."""
        params = list(self.params.values())
        step = self.fd_eps

        def gradient() -> list[Tensor]:
            _, grads = self.batch_gradients(batch, memory_format)
            found = zip(params, grads, strict=True)
            return [torch.zeros_like(p) if g is None else g for p, g in found]

        def product(vector: Tensors) -> tuple[Tensor, ...]:
            return central_difference(gradient, params, vector, step)

        return BatchCurvature(
            None, True, list(self.params), LinearMap(product, params, NO_GRADIENT)
        )

    def _products(self, rows: Tensor) -> tuple[Tensor, float, bool]:
        """Where an operation has no second derivative, the layers that do it are named."""
        try:
            return super()._products(rows)
        except DerivativeError as error:
            raise DerivativeError(f"{error}{checks.layers(self, str(error))}") from error
