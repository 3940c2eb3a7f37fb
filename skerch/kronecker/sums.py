"""The sums of a method over the data of a curvature, which add up over parts of the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from skerch.curvature.batching import to_device
from skerch.curvature.empirical_fisher import EmpiricalFisherOperator
from skerch.curvature.fisher import FisherOperator
from skerch.curvature.losses import differentiating
from skerch.curvature.state import unchanged
from skerch.errors import SkerchError
from skerch.kronecker.layers import Layer
from skerch.kronecker.methods.base import Evidence, Method, Tensors
from skerch.kronecker.recorder import position_mask, recording

Scored = FisherOperator | EmpiricalFisherOperator
MOST_AT_ONCE = 16  # scores, in a vectorised backward pass
MOST_ENTRIES = 2**20  # of its slopes: more of them are not faster together
MOST_SCORES = 10_000  # of an example, each a backward pass


@dataclass(frozen=True)
class Sums:
    """The sums of each layer, by its name, and what the batches weigh."""

    layers: dict[str, Tensors]
    total: float

    def __add__(self, other: Sums) -> Sums:
        layers = {
            name: {key: sum + other.layers[name][key] for key, sum in sums.items()}
            for name, sums in self.layers.items()
        }
        return Sums(layers, self.total + other.total)


def sum_up(curvature: Scored, layers: Sequence[Layer], method: Method) -> Sums:
    """The sums over all the data of a curvature, in its dtype: float32 at least.

    Raises SkerchError where an example has more scores than can be had.
    """
    sums = {layer.name: method.zeros(layer, curvature.dtype, curvature.device) for layer in layers}
    total = 0.0
    with unchanged(curvature.model, curvature.device), differentiating():
        for weight, batch in curvature.data_batches():
            batch = to_device(batch, curvature.device)
            total += weight
            with recording(curvature.model, layers, position_mask(batch)) as record:
                z = curvature.output(batch, "preserve")
            record.n = len(z)
            _require_few(curvature, z)
            masses = weight * curvature.masses(z.detach(), batch)
            entries = sum(call.shape.numel() for call in record.calls)
            at_once = min(MOST_AT_ONCE, max(1, MOST_ENTRIES // entries))
            found = _chunks(curvature.scores(z.detach(), batch), at_once)
            for number, scores in enumerate(found):
                for layer, g in record.slopes(z, scores.to(z.dtype) * weight**0.5):
                    evidence = Evidence(layer, g.to(curvature.dtype), partial(record.rows, layer))
                    if number == 0:
                        weights = record.weights(layer, evidence.a, masses)
                        method.add_rows(sums[layer.name], layer, evidence.a, weights)
                    method.add(sums[layer.name], evidence)
    return Sums(sums, total)


def _require_few(curvature: Scored, z: Tensor) -> None:
    """Refuse more scores of an example than can be had."""
    scores = z[0].numel()
    by_output = isinstance(curvature, FisherOperator) and not curvature.samples
    if by_output and scores > MOST_SCORES:
        raise SkerchError(
            f"The exact Fisher matrix takes a backward pass for each of the {scores:,} outputs of "
            f"an example, and more than {MOST_SCORES:,} are too many; draw labels instead "
            "(fisher=mc, or FisherOperator(…, samples=1))."
        )


def _chunks(scores: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    while several := list(islice(scores, size)):
        yield torch.stack(several)
