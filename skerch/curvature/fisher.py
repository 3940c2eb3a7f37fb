"""The Fisher information of a network's outputs, as an operator on the selected parameters."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from skerch.curvature.batching import count_examples
from skerch.curvature.functional import Function
from skerch.curvature.losses import (
    ForwardFn,
    Loss,
    LossOfOutput,
    LossOfOutputFn,
    OutputProduct,
    example_masses,
    outer_products,
)
from skerch.curvature.outputs import OutputCurvature
from skerch.errors import ShapeError, SkerchError
from skerch.randomness import stream

DRAWN_TOGETHER = 64  # examples, by their numbers: a generator for each would take longest


class FisherOperator(OutputCurvature):
    """F = Σ_i m_i J_iᵀ E[g gᵀ] J_i, for the slope g of -log p(ŷ | z_i) at labels ŷ from p(· | z_i).

    i are the terms of the mean loss, with weights m_i (`skerch.curvature.losses.closed_forms`): the
    labels of the data matter only where they have weights or are ignored. p is a softmax for
    cross-entropy, a Gaussian of variance 1/2 for squared error, a sigmoid for binary cross-entropy.
    With these, F is the GGN of the loss.

    Args:
        samples: 0 for the expectation, M for the mean over M draws of all labels.
        seed: of the draws, each of which is a function of it and of the example's number in the
            data, however they are cut into batches. Data in another order, or a part of them, come
            in batches `Numbered(batch, index)`. None takes a fresh one, for all products.

    Positions of an example have draws of their own, and the outer products are theirs. The other
    arguments, and what is raised, are those of `OutputCurvature`; SkerchError for a loss of outputs
    that is none of these.
    """

    def __init__(
        self,
        model: Module | Function,
        dataloader: Iterable[Any],
        forward_fn: ForwardFn,
        loss_of_output_fn: LossOfOutputFn,
        *,
        samples: int = 0,
        seed: int | None = 0,
        **options: Any,
    ):
        if not isinstance(loss_of_output_fn, LossOfOutput):
            raise SkerchError(
                "The Fisher information is of a likelihood of labels, and this loss is not known "
                "to be one; give supervised_loss or another loss of skerch.curvature.losses, of "
                "cross-entropy, squared error or binary cross-entropy with logits."
            )
        if samples < 0:
            raise SkerchError(f"samples is {samples}; the least is 0, for the expectation.")
        super().__init__(model, dataloader, forward_fn, loss_of_output_fn, **options)
        self.samples, self.likelihood = samples, loss_of_output_fn
        self.seed = secrets.randbits(63) if seed is None else seed
        if samples:
            weight = self.batch_weight
            self.dataloader = _InOrder(dataloader)
            self.batch_weight = lambda numbered: weight(numbered.batch)
            self.forward_fn = lambda model, numbered: forward_fn(model, numbered.batch)
            self.loss_of_output_fn = lambda z, numbered: loss_of_output_fn(z, numbered.batch)
            self.loss_fn = Loss(self.forward_fn, self.loss_of_output_fn)

    def output_product(self, output: Tensor, batch: Any) -> OutputProduct:
        if not self.samples:
            return lambda u: self.likelihood.hvp(output, batch, u)
        return outer_products(self._drawn(output, batch), self.likelihood.closed.dims(output))

    def scores(self, output: Tensor, batch: Any) -> Iterator[Tensor]:
        """r of the output's shape, with E Σ r rᵀ = B for the block B of each example."""
        if not self.samples:
            yield from self.likelihood.closed.roots(output, self.likelihood.target(batch))
        else:
            for r in self._drawn(output, batch):
                yield r / self.samples**0.5

    def masses(self, output: Tensor, batch: Any) -> Tensor:
        """What each example weighs in the mean loss of the batch, of shape (n,)."""
        return example_masses(self.likelihood, output, batch.batch if self.samples else batch)

    def _drawn(self, output: Tensor, batch: Any) -> Tensor:
        """The scores (samples, *z.shape) at labels that are drawn."""
        closed, y = self.likelihood.closed, self.likelihood.target(batch.batch)
        shape = closed.drawn(output)
        if len(batch.index) != next(iter(shape), None):
            raise ShapeError(
                f"Monte Carlo draws labels for {len(batch.index)} examples along dimension 0 of an "
                f"output of shape {tuple(output.shape)}; let forward_fn return them there."
            )
        uniform = self._uniform(batch.index.tolist(), shape[1:])
        return closed.scores(output, y, uniform.to(output.device))

    def _uniform(self, index: Sequence[int], shape: torch.Size) -> Tensor:
        """Uniform numbers (samples, n, *shape) of the examples of these numbers."""
        chunks: dict[int, NDArray[np.float64]] = {}
        rows = []
        for chunk, row in (divmod(number, DRAWN_TOGETHER) for number in index):
            if chunk not in chunks:
                size = DRAWN_TOGETHER, self.samples, *shape
                chunks[chunk] = stream(self.seed, "labels", chunk).random(size)
            rows.append(chunks[chunk][row])
        return torch.from_numpy(np.stack(rows, axis=1))


@dataclass(frozen=True)
class Numbered:
    """A batch with the numbers that its examples have in the data."""

    batch: Any
    index: Tensor  # (n,), of integers


class _InOrder(Iterable[Numbered]):
    """Batches with the numbers of their examples: as they come, where they have none."""

    def __init__(self, batches: Iterable[Any]):
        self.batches = batches

    def __iter__(self) -> Iterator[Numbered]:
        start = 0
        for batch in self.batches:
            if isinstance(batch, Numbered):
                yield batch
            else:
                stop = start + count_examples(batch)
                yield Numbered(batch, torch.arange(start, stop, device="cpu"))
                start = stop
