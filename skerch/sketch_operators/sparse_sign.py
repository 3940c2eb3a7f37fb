"""Sparse sign maps: a few random signs per coordinate, so that a product costs little."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix
from torch import Tensor
from torch.nn.functional import embedding_bag

from skerch.randomness import stream
from skerch.sketch_operators.base import SketchOperator

MOST_NONZEROS = 8  # in a column
CHUNK_COORDINATES = 2**15  # that one random stream draws: another number is another map


class SparseSign(SketchOperator):
    """S of shape (s, N) with ζ = min(8, s) nonzeros ±1/√ζ per column, at distinct random rows.

    Each row is kept as two bags of coordinates, those with +1 and those with -1: row i of S x is
    (Σ x over bag 2i - Σ x over bag 2i + 1) / √ζ. Bags are kept by chunks of coordinates, as a chunk
    of a block X fits in the cache. Sums are taken in a fixed order, whatever the number of threads.
    Tropp, Yurtsever, Udell and Cevher 2019, section 3.3; Martinsson and
    Tropp 2020, section 9.2.
    """

    @property
    def nonzeros(self) -> int:
        """ζ, the nonzeros per column."""
        return min(MOST_NONZEROS, self.shape[0])

    @property
    def scale(self) -> float:
        """1/√ζ, rounded to float32: the entries are float32 numbers in every dtype."""
        return float(np.float32(self.nonzeros**-0.5))

    def _spans(self) -> Iterator[slice]:
        for start in range(0, self.shape[1], CHUNK_COORDINATES):
            yield slice(start, min(start + CHUNK_COORDINATES, self.shape[1]))

    def _draw(self, span: slice) -> NDArray[np.int32]:
        """The bags of a chunk's coordinates, (coordinates, ζ), drawn by Floyd's algorithm."""
        n, nonzeros = span.stop - span.start, self.nonzeros
        generator = stream(self.seed, self.role, span.start // CHUNK_COORDINATES)
        rows = np.empty((nonzeros, n), dtype=np.int32)
        for i, last in enumerate(range(self.shape[0] - nonzeros, self.shape[0])):
            drawn = generator.integers(last, size=n, dtype=np.int32, endpoint=True)
            taken = (rows[:i] == drawn).any(axis=0)
            rows[i] = np.where(taken, last, drawn)
        random_bytes = np.frombuffer(generator.bytes(-(-nonzeros * n // 8)), np.uint8)
        signs = np.unpackbits(random_bytes, count=nonzeros * n).reshape(nonzeros, n)
        return np.ascontiguousarray((2 * rows + signs).T)

    @cached_property
    def _bags(self) -> list[tuple[Tensor, Tensor]]:
        """Per chunk, the coordinates within it sorted by bag, and the 2s + 1 bounds of the bags."""
        bags = []
        for span in self._spans():
            drawn = self._draw(span)
            bounds = np.arange(0, drawn.size + 1, self.nonzeros, dtype=np.int32)
            ones = np.ones(drawn.size, dtype=np.int8)
            shape = (2 * self.shape[0], len(drawn))
            by_bag = csc_matrix((ones, drawn.ravel(), bounds), shape=shape).tocsr()
            bags.append((torch.from_numpy(by_bag.indices), torch.from_numpy(by_bag.indptr)))
        return bags

    @cached_property
    def _memberships(self) -> list[csc_matrix]:
        """Per chunk, the (2s, coordinates) matrix with a one where a bag holds a coordinate."""
        return [
            csr_matrix(
                (np.ones(len(members), dtype=np.int8), members.numpy(), bounds.numpy()),
                shape=(2 * self.shape[0], span.stop - span.start),
            ).tocsc()
            for span, (members, bounds) in zip(self._spans(), self._bags, strict=True)
        ]

    @cached_property
    def _device_bags(self) -> list[tuple[Tensor, Tensor]]:
        return [(members.to(self.device), bounds.to(self.device)) for members, bounds in self._bags]

    def _rows(self, start: int, stop: int) -> Tensor:
        block = torch.zeros(stop - start, self.shape[1], dtype=torch.float32, device="cpu")
        for span, (members, bounds) in zip(self._spans(), self._bags, strict=True):
            bounds = bounds[2 * start : 2 * stop + 1].long()
            bag = torch.repeat_interleave(bounds.diff())
            sign = 1 - 2 * (bag % 2).to(torch.float32)
            block[bag // 2, span.start + members[bounds[0] : bounds[-1]]] = self.scale * sign
        return block

    def _matmul(self, X: Tensor) -> Tensor:
        sums = X.new_zeros(2 * self.shape[0], X.shape[1])
        chunks = (X[span].clone(memory_format=torch.contiguous_format) for span in self._spans())
        if X.device.type == "cpu" and X.dtype == torch.float64:  # embedding_bag is slow at it
            for chunk, membership in zip(chunks, self._memberships, strict=True):
                sums += torch.from_numpy(membership @ chunk.detach().numpy())
        else:
            for chunk, (members, bounds) in zip(chunks, self._device_bags, strict=True):
                sums += embedding_bag(members, chunk, bounds[:-1], mode="sum")
        return self.scale * (sums[0::2] - sums[1::2])

    def _rmatmul(self, X: Tensor) -> Tensor:
        signed = self.scale * torch.stack([X, -X], dim=1).flatten(end_dim=1)
        spans = (torch.from_numpy(self._draw(span)).to(self.device) for span in self._spans())
        return torch.cat([embedding_bag(bags, signed, mode="sum") for bags in spans])
