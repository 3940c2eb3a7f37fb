"""Kronecker-factored curvature as an operator on the flat parameters, and functions of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from numbers import Real

import torch
from torch import Tensor

from skerch.curvature.base import CurvatureOperator
from skerch.errors import SkerchError
from skerch.kronecker.eigenbasis import Basis
from skerch.kronecker.inverse import KINDS, Spectral, factored
from skerch.kronecker.layers import Layer


@dataclass(frozen=True)
class Block(ABC):
    """The block of a layer, as eigenvalues in directions."""

    layer: Layer
    values: Tensor  # the eigenvalue of each direction

    @property
    @abstractmethod
    def counts(self) -> Tensor:
        """How many eigenvectors each direction stands for, to be broadcast to the values."""

    @abstractmethod
    def multiply(self, G: Tensor) -> Tensor:
        """The block times matrices G (b, groups, outputs, inputs)."""

    @property
    @abstractmethod
    def known(self) -> Tensor:
        """Which of the values have an eigenvector: those of a rest do not. Boolean, like them."""

    @abstractmethod
    def eigenvectors(self, index: Tensor) -> Tensor:
        """Those of the flattened values at an index (b,), as (b, groups, outputs, inputs)."""

    def with_values(self, values: Tensor) -> Block:
        """The block with other eigenvalues."""
        return replace(self, values=values)

    def trace(self, f: Callable[[Tensor], Tensor] = lambda values: values) -> float:
        """Σ f(λ)."""
        return float((f(self.values.double()) * self.counts.double()).sum())

    @property
    def mean(self) -> float:
        """The mean eigenvalue."""
        return self.trace() / math.prod(self.layer.shape)


@dataclass(frozen=True)
class KroneckerBlock(Block):
    """Directions q_o q_iᵀ of the bases of S and A; λ (groups, R_O, R_I)."""

    S: Basis
    A: Basis
    corrected: bool = False  # values are not the products of those of S and A

    @classmethod
    def of(cls, layer: Layer, S: Basis, A: Basis, values: Tensor | None = None) -> KroneckerBlock:
        """S ⊗ A, or with other eigenvalues in its eigenbasis."""
        corrected = values is not None
        if values is None:
            values = S.values[..., :, None] * A.values[..., None, :]
        return cls(layer, values, S, A, corrected)

    @property
    def counts(self) -> Tensor:
        return self.S.counts[:, None] * self.A.counts

    def with_values(self, values: Tensor) -> KroneckerBlock:
        return replace(self, values=values, corrected=True)

    def multiply(self, G: Tensor) -> Tensor:
        S, A, m = self.S, self.A.to(G.device, G.dtype), self.values.to(G)
        if S.vectors is None:
            return A.times(G, m)
        Q = S.vectors.to(G)
        C = Q.mT @ G
        if S.is_whole:
            return Q @ A.times(C, m)
        return Q @ A.times(C, m[..., :-1, :]) + A.times(G - Q @ C, m[..., -1:, :])

    @property
    def known(self) -> Tensor:
        known = torch.zeros_like(self.values, dtype=torch.bool)
        known[:, : self.S.rank, : self.A.rank] = True
        return known

    def eigenvectors(self, index: Tensor) -> Tensor:
        group, o, i = torch.unravel_index(index, self.values.shape)
        G = self.values.new_zeros(len(index), *self.layer.shape, dtype=torch.float64)
        b = torch.arange(len(index), device=index.device)
        left, right = self.S.columns(group, o).double(), self.A.columns(group, i).double()
        G[b, group] = left[:, :, None] * right[:, None]
        return G


@dataclass(frozen=True)
class DenseBlock(Block):
    """Directions of vec(W) itself: orthonormal columns, and all that is orthogonal as the last."""

    vectors: Tensor  # (P, r)

    @property
    def counts(self) -> Tensor:
        counts = torch.ones_like(self.values, dtype=torch.float64)
        if len(counts) > self.vectors.shape[1]:
            counts[-1] = len(self.vectors) - self.vectors.shape[1]
        return counts

    def multiply(self, G: Tensor) -> Tensor:
        V, m = self.vectors.to(G), self.values.to(G)
        X = G.flatten(1)
        r = V.shape[1]
        if len(m) == r:
            return (((X @ V) * m) @ V.T).view_as(G)
        return (((X @ V) * (m[:r] - m[r])) @ V.T + m[r] * X).view_as(G)

    @property
    def known(self) -> Tensor:
        return torch.arange(len(self.values), device=self.values.device) < self.vectors.shape[1]

    def eigenvectors(self, index: Tensor) -> Tensor:
        return self.vectors[:, index].T.reshape(-1, *self.layer.shape)


class KroneckerOperator(CurvatureOperator):
    """The direct sum of blocks of layers, (N, N) on the flat parameters in the model's order.

    Parameters that are in no layer, the `uncovered` ones, are multiplied by one number, 0 for a
    curvature.

    `inverse` and `map` are operators of the same kind with other eigenvalues, so they multiply,
    have a trace and a determinant, and precondition.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        blocks: Sequence[Block],
        *,
        uncovered: Mapping[str, str] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        elsewhere: float = 0.0,
    ):
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        size = sum(sizes.values())
        super().__init__((size, size), dtype, device)
        ends = pairwise(accumulate(sizes.values(), initial=0))
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.columns = {name: slice(*at) for name, at in zip(sizes, ends, strict=True)}
        self.blocks, self.uncovered = list(blocks), dict(uncovered or {})
        self.elsewhere = elsewhere

    def _matmul(self, X: Tensor) -> Tensor:
        rows = X.T
        out = rows * self.elsewhere
        for block in self.blocks if len(rows) else ():
            parts = {
                name: rows[:, self.columns[name]].reshape(-1, *shape)
                for name, shape in block.layer.shapes.items()
            }
            self._put(out, block, block.multiply(block.layer.matrix(parts)))
        return out.T

    def _put(self, rows: Tensor, block: Block, G: Tensor) -> None:
        """Write matrices G (b, groups, outputs, inputs) of a block into rows (b, N)."""
        for name, part in block.layer.tensors(G).items():
            rows[:, self.columns[name]] = part.flatten(1).to(rows)

    def map(self, f: Callable[[Block], Tensor], elsewhere: float) -> KroneckerOperator:
        """The operator with other eigenvalues: f of a block for its values, and a number."""
        return KroneckerOperator(
            self.shapes,
            [block.with_values(f(block)) for block in self.blocks],
            uncovered=self.uncovered,
            dtype=self.dtype,
            device=self.device,
            elsewhere=elsewhere,
        )

    def inverse(
        self,
        damping: float,
        kind: str = "damped",
        *,
        relative: bool = False,
        power: float = -1.0,
    ) -> KroneckerOperator:
        """An inverse m(λ)⁻¹ at a damping δ, absolute or relative to a layer's mean eigenvalue.

        - damped: m = λ + δ.
        - pseudo: m = λ where λ > δ, and above the rounding of the layer's largest, d ε max λ for
          the widest factor d; the inverse is 0 elsewhere.
        - tikhonov: the inverse is λ / (λ² + δ²).
        - factored: (S + √δ/π I) ⊗ (A + π√δ I) with π² = (tr A / inputs) / (tr S / outputs), of
          Martens and Grosse (2015, section 6.3); not for corrected eigenvalues.

        `power=-0.5` is its square root. On uncovered parameters, and where a block is 0, λ = 0.
        Raises SkerchError for another kind, a negative δ, and where nothing is inverted.
        """
        if kind not in KINDS:
            raise SkerchError(f"The inverse {kind} is unknown; choose {', '.join(KINDS)}.")
        _check_damping(damping)

        def values(block: Block) -> Tensor:
            own = damping * block.mean if relative else damping
            if kind == "pseudo":
                wide, eps = max(block.values.shape), torch.finfo(self.dtype).eps
                own = max(own, wide * eps * float(block.values.max()))
            if kind != "factored":
                return KINDS[kind](block.values.double().clamp(min=0), own) ** power
            if not isinstance(block, KroneckerBlock) or block.corrected:
                raise SkerchError(
                    "A factored damping is of S and A, and these eigenvalues are corrected; take "
                    "kind=damped, or a method without correction."
                )
            return factored(block.S, block.A, own) ** power

        rest = self.size - self.covered
        other = torch.tensor(self.elsewhere, dtype=torch.float64, device="cpu")
        whole = self.mean * damping if relative else damping
        found = self.map(values, float(KINDS[kind](other, whole) ** power) if rest else 0.0)
        if not all(bool(block.values.isfinite().all()) for block in found.blocks) or not (
            math.isfinite(found.elsewhere)
        ):
            raise SkerchError(
                f"damping={damping} leaves eigenvalues of 0, which have no inverse; take a larger "
                "one, or kind=pseudo."
            )
        return found

    @property
    def covered(self) -> int:
        """How many parameters are in layers."""
        return sum(math.prod(block.layer.shape) for block in self.blocks)

    @property
    def mean(self) -> float:
        """The mean eigenvalue of the layers."""
        return sum(block.trace() for block in self.blocks) / max(1, self.covered)

    def trace(self) -> float:
        """Σ λ."""
        return self._sum(lambda values: values)

    def frobenius_norm(self) -> float:
        """√Σ λ²."""
        return math.sqrt(self._sum(torch.square))

    def logdet(self, damping: float = 0.0) -> float:
        """Σ log(λ + δ), over all N; -inf where λ + δ = 0.

        Raises SkerchError for a negative δ.
        """
        _check_damping(damping)
        return self._sum(lambda values: (values + damping).log())

    def _sum(self, f: Callable[[Tensor], Tensor]) -> float:
        """Σ f(λ), over all N."""
        rest = self.size - self.covered
        other = torch.tensor(self.elsewhere, dtype=torch.float64, device="cpu")
        last = rest * float(f(other)) if rest else 0.0
        return sum(block.trace(f) for block in self.blocks) + last

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest λ, the largest first, and their eigenvectors (N, k), in float64.

        Equal ones are in the order of layers, and within them of directions. They end, and are
        fewer than k, before one that has no eigenvector of its own: the mean of what a sketched
        basis leaves, and that of uncovered parameters.

        Raises SkerchError for a negative k.
        """
        if k < 0:
            raise SkerchError(f"k={k} must be a number of eigenpairs, 0 or above.")
        every = [block.values.double().flatten() for block in self.blocks]
        known = [block.known.flatten() for block in self.blocks]
        ends = list(accumulate(map(len, every), initial=0))
        if self.covered < self.size:
            every.append(torch.tensor([self.elsewhere], dtype=torch.float64, device=self.device))
            known.append(torch.tensor([False], device=self.device))
        values, order = torch.cat(every).sort(descending=True, stable=True)
        values, order = values[:k], order[:k]
        first = torch.cat(known)[order].long().cumprod(0).bool()
        values, order = values[first], order[first]
        rows = torch.zeros(len(order), self.size, dtype=torch.float64, device=self.device)
        for block, (start, end) in zip(self.blocks, pairwise(ends), strict=True):
            own = (order >= start) & (order < end)
            part = rows[own]
            self._put(part, block, block.eigenvectors(order[own] - start))
            rows[own] = part
        return values, rows.T

    def eigenvalues(self) -> Tensor:
        """All λ (N,), the largest first, those of uncovered parameters too."""
        found = [
            block.values.double()
            .flatten()
            .repeat_interleave(block.counts.expand_as(block.values).flatten().long())
            for block in self.blocks
        ]
        rest = self.size - self.covered
        found.append(torch.full((rest,), self.elsewhere, dtype=torch.float64, device=self.device))
        return torch.cat(found).sort(descending=True).values


def _check_damping(damping: float) -> None:
    if not (isinstance(damping, Real) and 0 <= damping < math.inf):
        raise SkerchError(f"damping={damping!r} must be a finite number, 0 or above.")


__all__ = ["Block", "DenseBlock", "KroneckerBlock", "KroneckerOperator", "Spectral"]
