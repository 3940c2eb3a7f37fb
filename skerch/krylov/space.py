"""A block Krylov space with full orthogonalisation and thick restarts.

With orthonormal rows V (m, n) and Q (b, n), the next block, all that is known of A is

    A Vᵀ = [V; Q]ᵀ H,    H of shape (m + b, m),

to rounding, as every product is orthogonalised against all of V, twice and more. So a Ritz pair
(θ, Vᵀs) has the residual ‖H s - [θ s; 0]‖, whether A is symmetric or its products are inexact. A
restart keeps the best Ritz vectors S and the relation: A VᵀS = [SᵀV; Q]ᵀ [SᵀHS; …] (Wu and Simon,
"Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J. Matrix Anal. Appl.
22(2), 2000; in blocks, Stewart's Krylov-Schur method, ibid. 23(3), 2002).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from skerch.krylov.operand import Operand

Which = Literal["LM", "LA", "SA"]
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "LM": lambda values: -values.abs(),
    "LA": lambda values: -values,
    "SA": lambda values: values,
}
MOST_PASSES = 8
ROUNDINGS = 10  # eps ‖A‖, to which a direction is told from rounding
SLAB = 2**16  # entries of all rows that are rotated at a time


@dataclass(frozen=True)
class RitzPairs:
    """Ritz values in the order asked for, with the vectors' coefficients in V."""

    values: Tensor  # (m,)
    coefficients: Tensor  # (m, m)
    beyond: Tensor  # (m,) norm of the residual's part along Q, which more steps reduce
    inside: Tensor  # (m,) norm of its part along V, which they do not: A's asymmetry

    @property
    def residuals(self) -> Tensor:
        """‖A v - θ v‖ of each pair."""
        return torch.hypot(self.beyond, self.inside)


class KrylovSpace:
    """V and Q in one array of `capacity` rows, of which a random block is the first Q."""

    def __init__(self, operand: Operand, capacity: int, block: int, seed: int):
        self.operand, self.seed = operand, seed
        self.rows = operand.like.new_empty(capacity, operand.local_size)
        self.H = torch.zeros(capacity, capacity, dtype=torch.float64, device="cpu")
        self.size, self.drawn = 0, 0
        self.rows[:block] = self._random(block).T
        _, _, self.width = self._orthonormalise(0, block)

    def expand(self) -> None:
        """Multiply Q, append it to V, and make what is new in the products the next Q."""
        m, b = self.size + self.width, self.width
        self.rows[m : m + b] = self.operand(self.rows[self.size : m].T).T
        h, R, self.width = self._orthonormalise(m, b)
        self.H[:m, self.size : m] = h
        self.H[m : m + self.width, self.size : m] = R
        self.size = m

    @property
    def is_closed(self) -> bool:
        """Whether V is the whole space."""
        return not self.width

    def ritz(self, which: Which) -> RitzPairs:
        """All Ritz pairs, those asked for first."""
        m = self.size
        T = self.H[:m, :m]
        values, S = torch.linalg.eigh((T + T.T) / 2)
        order = ORDERS[which](values).argsort(stable=True)
        values, S = values[order], S[:, order]
        beyond = torch.linalg.norm(self.H[m : m + self.width, :m] @ S, dim=0)
        return RitzPairs(values, S, beyond, torch.linalg.norm(T @ S - values * S, dim=0))

    def restart(self, S: Tensor) -> None:
        """Keep the part of V that coefficients S (m, p) span."""
        m, p, b = self.size, S.shape[1], self.width
        rotate(self.rows[:m], S, self.rows[:p])
        self.rows[p : p + b] = self.rows[m : m + b].clone()
        kept, along = S.T @ self.H[:m, :m] @ S, self.H[m : m + b, :m] @ S
        self.H.zero_()
        self.H[:p, :p], self.H[p : p + b, :p] = kept, along
        self.size = p

    def _orthonormalise(self, m: int, b: int) -> tuple[Tensor, Tensor, int]:
        """(h, R, b') with W = Vᵀh + QᵀR for the rows W = [m, m + b), whose place Q takes.

        Random vectors take the place of directions that V and rounding explain, as when V is an
        invariant subspace; their rows of R are zero. b' < b where fewer make V the whole space.
        """
        backend = self.operand.backend
        V, W = self.rows[:m].T, self.rows[m : m + b].T
        b = min(b, self.operand.size - m)
        h = torch.zeros(m, W.shape[1], dtype=torch.float64, device="cpu")
        R = torch.eye(W.shape[1], dtype=torch.float64, device="cpu")
        norm = torch.cat([self.H.square().sum(0), backend.dots(W, W)]).max().sqrt()
        eps = torch.finfo(self.rows.dtype).eps
        least = float(ROUNDINGS * eps * norm) ** 2
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
            W = self.rows[m : m + b].T
            lost = torch.nonzero(~there)[:, 0].tolist()
            if lost:
                self.rows[torch.tensor(lost, device=W.device) + m] = self._random(len(lost)).T
            elif turn and float(values.min()) > 0.5:
                break
            least = eps  # of squares of what were unit vectors
        return h, R, b

    def _random(self, count: int) -> Tensor:
        """Random vectors (n, count) of about unit norm, other ones each time."""
        columns = range(self.drawn, self.drawn + count)
        self.drawn += count
        return self.operand.randn(columns, self.seed, "krylov").div_(self.operand.size**0.5)


def rotate(rows: Tensor, S: Tensor, out: Tensor) -> None:
    """out = Sᵀ rows for rows (m, n) and S (m, p); `out` may be the first p rows."""
    factor = S.T.to(rows)
    for start in range(0, rows.shape[1], SLAB):
        out[:, start : start + SLAB] = factor @ rows[:, start : start + SLAB]
