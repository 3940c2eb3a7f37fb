"""Closed forms of what curvatures need of a criterion L(z, y) of outputs z and targets y.

Each criterion here is a weighted sum of negative log-likelihoods, L = Σ_i m_i (-log p(y_i | z_i)),
which is where its Fisher information comes from. A term i is a position of the logits for
cross-entropy and an entry of z for the others; m_i is its mass, 1/n in a plain mean.

- `hvp`: the product (∂²L/∂z²) u with u of the shape of z.
- `divisor`: what the mean of a batch divides by, which is its weight beside other batches.
- `mass`: the m_i as factors of z, with 1 in the place of the `dims` that belong to one example.
- `roots`: r of the shape of z with Σ r rᵀ = ∂²L/∂z², one after the other. Each is of one label of
  every example: of examples beside each other, the sum is over their own blocks.
- `scores`: r = √m ∂(-log p(ŷ | z))/∂z at labels ŷ that are drawn from p(· | z) by uniform numbers
  of shape (samples, *`drawn`(z)), so that E Σ r rᵀ = ∂²L/∂z².
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skerch.curvature.losses.softmax_product import softmax_product

Criterion = Callable[[Tensor, Tensor], Tensor]


class ClosedForm(ABC):
    """A criterion whose derivatives are known in closed form."""

    reduction: str

    @abstractmethod
    def hvp(self, z: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """(∂²L/∂z²) u, of the shape of z."""

    @abstractmethod
    def roots(self, z: Tensor, y: Tensor) -> Iterator[Tensor]:
        """r of the shape of z, which has examples along dimension 0: `z[0].numel()` of them."""

    @abstractmethod
    def scores(self, z: Tensor, y: Tensor, uniform: Tensor) -> Tensor:
        """r of shape (samples, *z.shape)."""

    def divisor(self, y: Tensor) -> float:
        """The number of targets."""
        return float(y.numel())

    def drawn(self, z: Tensor) -> torch.Size:
        """The shape of a draw of all labels."""
        return z.shape

    def mass(self, z: Tensor, y: Tensor) -> Tensor:
        """One over the number of examples, which lie along dimension 0 of z; 1 in a sum."""
        return z.new_tensor(1 / len(z) if self.reduction == "mean" else 1.0)

    def dims(self, z: Tensor) -> list[int]:
        """The dimensions of z that belong to one example."""
        return [*range(1, z.ndim)]


@dataclass(frozen=True)
class CrossEntropy(ClosedForm):
    """`torch.nn.functional.cross_entropy`, of logits with the classes along `dim`.

    By default that is dimension 1, or 0 of logits (classes,). ∂²L/∂z² = m (diag p - p pᵀ) at a
    position, with p = softmax(z). Its mass m is the sum of the target's probabilities, each times
    the weight of its class, over what the mean divides by; it is 0 where the label is ignored.
    """

    weight: Tensor | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    reduction: str = "mean"
    dim: int = 1
    fused: str = "auto"

    def hvp(self, z: Tensor, y: Tensor, u: Tensor) -> Tensor:
        return softmax_product(z, u, self.mass(z, y), self._dim(z), self.fused)

    def divisor(self, y: Tensor) -> float:
        if y.is_floating_point():
            return float(y.numel() / y.shape[min(self.dim, y.ndim - 1)])
        counted = y[y != self.ignore_index]
        if self.weight is None:
            return float(counted.numel())
        return float(self.weight.to(y.device)[counted].double().sum())

    def mass(self, z: Tensor, y: Tensor) -> Tensor:
        dim = self._dim(z)
        classes, smooth = z.shape[dim], self.label_smoothing
        dtype = torch.promote_types(z.dtype, torch.float32)
        c = torch.ones(classes, dtype=dtype, device=z.device)
        if self.weight is not None:
            c = self.weight.to(z.device, dtype)
        if y.is_floating_point():
            target = y.to(dtype) * (1 - smooth) + smooth / classes
            m: Tensor = torch.tensordot(target.movedim(dim, -1), c, 1)
            divisor: Tensor | float = m.numel()
        else:
            counted = y != self.ignore_index
            own: Tensor = c[torch.where(counted, y, 0)] * counted
            m = (1 - smooth) * own + smooth / classes * c.sum() * counted
            divisor = own.sum()
        m = m / divisor if self.reduction == "mean" else m
        return m.unsqueeze(dim)

    def drawn(self, z: Tensor) -> torch.Size:
        return z.movedim(self._dim(z), -1).shape[:-1]

    def dims(self, z: Tensor) -> list[int]:
        return [self._dim(z)]

    def scores(self, z: Tensor, y: Tensor, uniform: Tensor) -> Tensor:
        dim = self._dim(z)
        p = torch.softmax(z, dim, torch.promote_types(z.dtype, torch.float32))
        steps = p.movedim(dim, -1).double().cumsum(-1)
        labels = torch.searchsorted(steps, (uniform * steps[..., -1]).movedim(0, -1).contiguous())
        drawn = labels.movedim(-1, 0).clamp(max=z.shape[dim] - 1).unsqueeze(dim % z.ndim + 1)
        chosen = torch.zeros(len(drawn), *p.shape, dtype=p.dtype, device=p.device)
        chosen.scatter_(dim % z.ndim + 1, drawn, 1.0)
        return self.mass(z, y).sqrt() * (p - chosen)

    def roots(self, z: Tensor, y: Tensor) -> Iterator[Tensor]:
        p = torch.softmax(z, self._dim(z), torch.promote_types(z.dtype, torch.float32))
        m = self.mass(z, y).expand_as(z)
        for at in _entries(z):
            r = torch.zeros_like(p)
            position = list(at)
            position[self._dim(z)] = slice(None)  # all classes of the entry's position
            r[tuple(position)] = -p[tuple(position)]
            r[at] += 1
            root = (m[at] * p[at]).sqrt()
            yield r * root.view(-1, *[1] * (z.ndim - 1))

    def _dim(self, z: Tensor) -> int:
        return self.dim if z.ndim > 1 else 0


@dataclass(frozen=True)
class SquaredError(ClosedForm):
    """`torch.nn.functional.mse_loss`: ∂²L/∂z² = 2/n for the mean over n entries.

    It is the likelihood of a Gaussian of mean z and variance 1/2. A target that is repeated
    to the shape of z, or z to the target's, counts as often.
    """

    reduction: str = "mean"

    def hvp(self, z: Tensor, y: Tensor, u: Tensor) -> Tensor:
        return 2 * self._mass(z, y) * u

    def _mass(self, z: Tensor, y: Tensor) -> float:
        if self.reduction == "mean":
            return 1 / z.numel()
        return torch.add(z, y).numel() / z.numel()

    def roots(self, z: Tensor, y: Tensor) -> Iterator[Tensor]:
        return _diagonal_roots(torch.full_like(z, 2 * self._mass(z, y)))

    def scores(self, z: Tensor, y: Tensor, uniform: Tensor) -> Tensor:
        gaussian = torch.special.ndtri(uniform).to(z.dtype)  # (ŷ - z) √2
        scores: Tensor = gaussian * (2 * self._mass(z, y)) ** 0.5
        return scores


@dataclass(frozen=True)
class BinaryCrossEntropy(ClosedForm):
    """`torch.nn.functional.binary_cross_entropy_with_logits`.

    ∂²L/∂z² is diagonal, m p (1 - p) with p = sigmoid(z) and the entry's mass m.
    """

    weight: Tensor | None = None
    pos_weight: Tensor | None = None
    reduction: str = "mean"

    def hvp(self, z: Tensor, y: Tensor, u: Tensor) -> Tensor:
        p = torch.sigmoid(z)
        return self._mass(z, y) * p * (1 - p) * u

    def _mass(self, z: Tensor, y: Tensor) -> Tensor:
        m = torch.ones_like(z)
        if self.pos_weight is not None:
            m = self.pos_weight.to(z) * y + 1 - y
        if self.weight is not None:
            m = m * self.weight.to(z)
        return m / m.numel() if self.reduction == "mean" else m

    def roots(self, z: Tensor, y: Tensor) -> Iterator[Tensor]:
        p = torch.sigmoid(z)
        return _diagonal_roots(self._mass(z, y) * p * (1 - p))

    def scores(self, z: Tensor, y: Tensor, uniform: Tensor) -> Tensor:
        p = torch.sigmoid(z)
        return self._mass(z, y).sqrt() * (p - (uniform < p).to(p.dtype))


def _diagonal_roots(diagonal: Tensor) -> Iterator[Tensor]:
    """The columns of √diag(d) that examples have in common, for d of the shape of z."""
    for at in _entries(diagonal):
        r = torch.zeros_like(diagonal)
        r[at] = diagonal[at].sqrt()
        yield r


def _entries(z: Tensor) -> Iterator[tuple[Any, ...]]:
    """The entry of all examples at each place that one example has, as an index of z."""
    for place in product(*map(range, z.shape[1:])):
        yield slice(None), *place


_FUNCTIONS: dict[Any, type[ClosedForm]] = {
    F.cross_entropy: CrossEntropy,
    F.mse_loss: SquaredError,
    F.binary_cross_entropy_with_logits: BinaryCrossEntropy,
}
_MODULES: dict[type[nn.Module], tuple[type[ClosedForm], tuple[str, ...]]] = {
    nn.CrossEntropyLoss: (CrossEntropy, ("weight", "ignore_index", "label_smoothing", "reduction")),
    nn.MSELoss: (SquaredError, ("reduction",)),
    nn.BCEWithLogitsLoss: (BinaryCrossEntropy, ("weight", "pos_weight", "reduction")),
}


def closed_form(criterion: Criterion) -> ClosedForm | None:
    """What is known of one of torch's criteria, also with keywords by `partial`; None of others."""
    keywords: dict[str, Any]
    if type(criterion) in _MODULES:
        kind, names = _MODULES[type(criterion)]  # type: ignore[index]
        keywords = {name: getattr(criterion, name) for name in names}
    else:
        part = criterion if isinstance(criterion, partial) else partial(criterion)
        function = part.func if not part.args else None
        if function not in _FUNCTIONS:
            return None
        kind, keywords = _FUNCTIONS[function], part.keywords
    known = {"weight", "ignore_index", "label_smoothing", "reduction", "pos_weight"}
    known &= set(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    if not keywords.keys() <= known or keywords.get("reduction", "mean") not in ("mean", "sum"):
        return None
    return kind(**keywords)
