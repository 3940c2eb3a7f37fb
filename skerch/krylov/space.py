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

from skerch.krylov.basis import Basis, rotate
from skerch.krylov.operand import Operand

Which = Literal["LM", "LA", "SA"]
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "LM": lambda values: -values.abs(),
    "LA": lambda values: -values,
    "SA": lambda values: values,
}


@dataclass(frozen=True)
class RitzPairs:
    """Ritz values in the order asked for, with the vectors' coefficients in V."""

    values: Tensor  # (m,)
    coefficients: Tensor  # (m, m)
    beyond: Tensor  # (m,) norm of the residual's part along Q, which more steps reduce
    inside: Tensor  # (m,) norm of its part along V, which they do not: A's asymmetry


class KrylovSpace:
    """V, a basis of which the last `width` rows in memory are the next block, Q."""

    def __init__(self, operand: Operand, capacity: int, block: int, seed: int):
        self.operand = operand
        self.basis = Basis(operand, capacity, seed, "krylov")
        self.H = torch.zeros(capacity, capacity, dtype=torch.float64, device="cpu")
        self.basis.rows[:block] = self.basis.random(block).T
        _, _, self.width = self.basis.orthonormalise(block)

    @property
    def size(self) -> int:
        """m, the number of rows of V, whose products are known."""
        return self.basis.size

    def expand(self) -> None:
        """Multiply Q, append it to V, and make what is new in the products the next Q."""
        known, b = self.size, self.width
        self.basis.size = m = known + b
        self.basis.rows[m : m + b] = self.operand(self.basis.block(known, m)).T
        norm = float(torch.linalg.norm(self.H, dim=0).max())
        h, R, self.width = self.basis.orthonormalise(b, norm)
        self.H[:m, known:m] = h
        self.H[m : m + self.width, known:m] = R

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
        rows, m, p, b = self.basis.rows, self.size, S.shape[1], self.width
        rotate(rows[:m], S, rows[:p])
        rows[p : p + b] = rows[m : m + b].clone()
        kept, along = S.T @ self.H[:m, :m] @ S, self.H[m : m + b, :m] @ S
        self.H.zero_()
        self.H[:p, :p], self.H[p : p + b, :p] = kept, along
        self.basis.size = p
