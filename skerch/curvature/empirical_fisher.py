"""The empirical Fisher matrix of a mean loss, as an operator on the selected parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from skerch.curvature.batching import tensors_in, with_tensors
from skerch.curvature.functional import Function
from skerch.curvature.losses import (
    LossFn,
    LossOfOutput,
    OutputProduct,
    example_masses,
    outer_products,
)
from skerch.curvature.outputs import OutputCurvature
from skerch.curvature.strategies.linear_map import quiet_vmap
from skerch.errors import ShapeError


class EmpiricalFisherOperator(OutputCurvature):
    """F = Σ_i m_i g_i g_iᵀ / Σ_i m_i, for the gradients g_i = ∇ℓ_i(θ) of the losses of examples.

    It takes the labels of the data, and is another matrix than the Fisher information, which takes
    those of the model (`FisherOperator`; Kunstner, Hennig and Balles 2019).

    Args:
        per_sample_loss_fn: ℓ_i = per_sample_loss_fn(model, sample) of one example, the batch
            without `sample_dim`; vectorised where `torch.vmap` can do that.
        sample_dim: the dimension of the batch's tensors along which examples lie.

    All m_i are 1 then. `of_loss` makes it of a mean loss of the network's outputs: examples are the
    terms of the mean, which are the positions of a cross-entropy (m_i is the weight of the label's
    class, 0 where it is ignored) and dimension 0 of other outputs.
    The other arguments, and what is raised, are those of `OutputCurvature`.
    """

    def __init__(
        self,
        model: Module | Function,
        dataloader: Iterable[Any],
        per_sample_loss_fn: LossFn,
        *,
        sample_dim: int = 0,
        **options: Any,
    ):
        losses = PerSampleLosses(per_sample_loss_fn, sample_dim)
        options["batch_weight"] = options.get("batch_weight") or losses.batch_weight
        super().__init__(model, dataloader, losses, mean, **options)

    @classmethod
    def _of_outputs(cls, *arguments: Any, **options: Any) -> OutputCurvature:
        op = cls.__new__(cls)
        OutputCurvature.__init__(op, *arguments, **options)
        return op

    def output_product(self, output: Tensor, batch: Any) -> OutputProduct:
        """The sum over examples of m g gᵀ, for the slope m g that the loss has in their outputs."""
        mass, dims = output.new_tensor(1 / len(output)), [*range(1, output.ndim)]
        if isinstance(self.loss_of_output_fn, LossOfOutput):
            closed, y = self.loss_of_output_fn.closed, self.loss_of_output_fn.target(batch)
            mass, dims = closed.mass(output, y), closed.dims(output)
        return outer_products(self._slope(output, batch, mass)[None], dims)

    def scores(self, output: Tensor, batch: Any) -> Iterator[Tensor]:
        """r = √m ∂ℓ/∂z of the losses ℓ along dimension 0, each the mean of its terms."""
        mass = self.masses(output, batch)
        yield self._slope(output, batch, mass.view(-1, *[1] * (output.ndim - 1)))

    def _slope(self, output: Tensor, batch: Any, mass: Tensor) -> Tensor:
        """√m g, for the slope m g of the loss and masses m as factors of the output."""
        z = output.detach().requires_grad_()
        loss = self.loss_of_output_fn(z, batch)
        (slope,) = torch.autograd.grad(loss, z, allow_unused=True, materialize_grads=True)
        return slope / mass.sqrt().masked_fill(mass == 0, torch.inf)

    def masses(self, output: Tensor, batch: Any) -> Tensor:
        """What each example weighs in the mean loss of the batch, of shape (n,)."""
        return example_masses(self.loss_of_output_fn, output, batch)


class PerSampleLosses:
    """The losses (n,) of a batch's examples: outputs, of which the loss is the mean.

    An example is the batch without dimension `sample_dim` of its tensors.
    """

    def __init__(self, per_sample_loss_fn: LossFn, sample_dim: int):
        self.per_sample_loss_fn, self.sample_dim = per_sample_loss_fn, sample_dim

    def __call__(self, model: Module, batch: Any) -> Tensor:
        self.batch_weight(batch)  # which sees that examples can be told apart
        tensors, dim = tensors_in(batch), self.sample_dim

        def loss(*sample: Tensor) -> Tensor:
            return self.per_sample_loss_fn(model, with_tensors(batch, sample))

        try:
            with quiet_vmap():
                losses: Tensor = torch.vmap(loss, dim)(*tensors)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # what cannot be vectorised
            samples = zip(*(tensor.unbind(dim) for tensor in tensors), strict=True)
            losses = torch.stack([loss(*sample) for sample in samples])
        return losses

    def batch_weight(self, batch: Any) -> float:
        """The number of examples."""
        shapes, dim = [tensor.shape for tensor in tensors_in(batch)], self.sample_dim
        if lacking := [tuple(s) for s in shapes if not -len(s) <= dim < len(s)]:
            raise ShapeError(
                f"A tensor of a batch has the shape {lacking[0]} and no sample_dim={dim}; all "
                "must have their examples there."
            )
        sizes = {shape[dim] for shape in shapes}
        if len(sizes) != 1:
            raise ShapeError(
                f"The tensors of a batch have {sorted(sizes)} entries along sample_dim="
                f"{self.sample_dim}; they must agree on the number of examples."
            )
        return float(sizes.pop())


def mean(losses: Tensor, batch: Any) -> Tensor:
    """The loss of the losses of examples."""
    return losses.mean()
