"""Orthonormal vectors that grow by blocks, in one array."""

from __future__ import annotations

import torch
from torch import Tensor

from skerch.krylov.operand import Operand

MOST_PASSES = 8
ROUNDINGS = 10  # times eps and the norm, to which a direction is told from rounding
SLAB = 2**16  # entries of all rows that are rotated at a time


class Basis:
    """The first `size` rows (m, n) of an array of `capacity` rows: V, orthonormal to rounding."""

    def __init__(self, operand: Operand, capacity: int, seed: int, role: str):
        self.operand, self.seed, self.role = operand, seed, role
        self.rows = operand.like.new_empty(capacity, operand.local_size)
        self.size, self.drawn = 0, 0

    def block(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) as columns (n, b), in place."""
        return self.rows[start:stop].T

    @property
    def columns(self) -> Tensor:
        """V as columns (n, m)."""
        return self.block(0, self.size)

    def orthonormalise(self, b: int, scale: float = 0.0) -> tuple[Tensor, Tensor, int]:
        """(h, R, b') with W = Vᵀh + QᵀR for the b rows W after V, whose place b' rows Q take.

        Random vectors take the place of directions that V and rounding explain, of norms below
        10 eps max(scale, ‖w_i‖), such as V being an invariant subspace leaves; their rows of R are
        zero. b' < b where fewer make V the whole space.
        """
        m, backend = self.size, self.operand.backend
        V, W = self.columns, self.block(m, m + b)
        h = torch.zeros(m, b, dtype=torch.float64, device="cpu")
        R = torch.eye(b, dtype=torch.float64, device="cpu")
        b = min(b, self.operand.size - m)
        eps = torch.finfo(self.rows.dtype).eps
        norm = max(scale, float(backend.dots(W, W).max()) ** 0.5)
        least = (ROUNDINGS * eps * norm) ** 2
        for turn in range(MOST_PASSES if b else 1):
            if m:
                c = backend.inner(V, W)
                W.addmm_(V, c.to(W), alpha=-1)
                h += c @ R
            values, E = torch.linalg.eigh(backend.inner(W, W))
            values, E = values.flip(0)[:b], E.flip(1)[:, :b]
            there = values > least
            T = torch.where(there, E / values.clamp(min=1e-300).sqrt(), 0.0)
            R = torch.where(there, values.clamp(min=0).sqrt(), 0.0)[:, None] * (E.T @ R)
            self.rows[m : m + b] = (W @ T.to(W)).T
            W = self.block(m, m + b)
            lost = torch.nonzero(~there)[:, 0]
            if len(lost):
                self.rows[(m + lost).to(W.device)] = self.random(len(lost)).T
            elif turn and float(values.min()) > 0.5:
                break
            least = eps  # of squares of what were unit vectors
        return h, R, b

    def random(self, count: int) -> Tensor:
        """Random vectors (n, count) of about unit norm, other ones each time."""
        columns = range(self.drawn, self.drawn + count)
        self.drawn += count
        return self.operand.randn(columns, self.seed, self.role).div_(self.operand.size**0.5)


def rotate(rows: Tensor, S: Tensor, out: Tensor) -> None:
    """out = Sᵀ rows for rows (m, n) and S (m, p); `out` may be the first p rows."""
    factor = S.T.to(rows)
    for start in range(0, rows.shape[1], SLAB):
        out[:, start : start + SLAB] = factor @ rows[:, start : start + SLAB]
