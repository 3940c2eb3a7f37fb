"""Eigendecompositions of Kronecker factors, exact or sketched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skerch.errors import SkerchError

FACTOR_EIGH = ("exact", "sketched")
FIRST_RANK = 8  # that a tolerance tries; it is doubled from there
ITERATIONS = 3  # of the subspace of a sketch


@dataclass(frozen=True)
class Basis:
    """Q diag(l) Qᵀ + c (I - Q Qᵀ) for each group, of size d x d.

    Where Q has fewer columns than rows, what is orthogonal to them is one more direction, the last
    one, with the mean c of its eigenvalues.
    """

    vectors: Tensor | None  # (groups, d, r), orthonormal columns; None for unit vectors, r = d
    values: Tensor  # (groups, r), or with c as the last (groups, r + 1)
    size: int  # d

    @property
    def rank(self) -> int:
        """How many columns Q has."""
        return self.size if self.vectors is None else self.vectors.shape[-1]

    @property
    def is_whole(self) -> bool:
        """Whether the columns of Q span everything."""
        return self.rank == self.size

    @property
    def counts(self) -> Tensor:
        """How many eigenvectors each direction stands for, like `values` of a group."""
        counts = torch.ones(self.values.shape[-1], dtype=torch.float64, device=self.values.device)
        if not self.is_whole:
            counts[-1] = self.size - len(counts) + 1
        return counts

    @property
    def trace(self) -> Tensor:
        """Of each group, (groups,)."""
        return self.values @ self.counts.to(self.values)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Basis:
        """In another dtype, and on another device."""
        Q = None if self.vectors is None else self.vectors.to(device, dtype)
        return Basis(Q, self.values.to(device, dtype), self.size)

    def times(self, X: Tensor, m: Tensor) -> Tensor:
        """X f(A), for rows X (…, groups, rows, d) and f of the directions m (groups, rows or 1, R).

        Each row has a function of its own.
        """
        if self.vectors is None:
            return X * m
        Q = self.vectors
        C = X @ Q
        if self.is_whole:
            return (C * m) @ Q.mT
        return (C * (m[..., :-1] - m[..., -1:])) @ Q.mT + X * m[..., -1:]

    def coordinates(self, X: Tensor) -> Tensor:
        """X Q (…, groups, rows, r) of rows X (…, groups, rows, d)."""
        return X if self.vectors is None else X @ self.vectors

    def columns(self, group: Tensor, index: Tensor) -> Tensor:
        """The columns of Q (b, d) of these groups and indices (b,)."""
        if self.vectors is None:
            return torch.nn.functional.one_hot(index, self.size).to(self.values)
        return self.vectors[group, :, index]


def decompose(
    factor: Tensor,
    *,
    how: str = "exact",
    rank: int | None = None,
    tol: float | None = None,
    seed: int = 0,
) -> Basis:
    """The eigendecomposition of each group's factor (groups, d, d), or of diagonals (groups, d).

    In float64, with eigenvalues clamped at 0. With `how="sketched"`, those that are much wider than
    `rank` have so many pairs only, see `leading`; or, with `tol`, the least number r of them that
    leaves ‖F - F_r‖ ≤ tol ‖F‖ in Frobenius norm in all groups.

    Raises SkerchError for an unknown `how`, and where sketched has neither rank nor tol, or both.
    """
    if how not in FACTOR_EIGH:
        raise SkerchError(f"factor_eigh={how} is unknown; choose {' or '.join(FACTOR_EIGH)}.")
    size = factor.shape[-1]
    factor = factor.double()
    if factor.ndim == 2:
        return Basis(None, factor.clamp(min=0), size)
    if how == "sketched":
        if (rank is None or rank < 1) if tol is None else (rank is not None or not 0 < tol < 1):
            raise SkerchError(
                "A sketched eigendecomposition needs a rank ≥ 1 or a tol between 0 and 1, not "
                f"rank={rank}, tol={tol}."
            )
        if tol is not None:
            found = _of_tolerance(factor, tol, seed)
        elif rank is not None and pays(rank, size):
            found = _with_rest(factor, *leading(factor, rank, seed))
        else:
            found = None
        if found is not None:
            return found
    values, vectors = _eigh(factor)
    return Basis(vectors, values.clamp(min=0), size)


def _eigh(factor: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values, vectors = torch.linalg.eigh(factor)
    except RuntimeError:  # some GPU solvers fail on factors of low rank
        values, vectors = torch.linalg.eigh(factor.cpu())
    return values.to(factor), vectors.to(factor).contiguous()  # as files have them, to the bit


def pays(rank: int, size: int) -> bool:
    """Whether so many eigenpairs take less time than all of a factor of that size."""
    return 4 * rank < size


def leading(factor: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues (groups, r) and their eigenvectors (groups, d, r) of each factor.

    By subspace iteration from half as many random vectors more (Halko, Martinsson and Tropp 2011,
    section 4.5), as products with a factor cost next to nothing beside its exact eigenvectors.
    """
    size = factor.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    columns = min(size, rank + rank // 2 + 10)
    Q = torch.randn(size, columns, generator=generator, dtype=torch.float64, device="cpu")
    Q = Q.to(factor)
    for _ in range(ITERATIONS):
        Q = torch.linalg.qr(factor @ Q).Q
    values, vectors = _eigh(Q.mT @ (factor @ Q))
    vectors = Q @ vectors.flip(-1)[..., :rank]
    return values.flip(-1)[..., :rank], vectors


def _of_tolerance(factor: Tensor, tol: float, seed: int) -> Basis | None:
    """Of the least rank; ‖F - F_r‖² is ‖F‖² less the squares of the r eigenvalues."""
    rank, norm = FIRST_RANK, factor.square().sum((-2, -1))[:, None]
    while pays(rank, factor.shape[-1]):
        values, vectors = leading(factor, rank, seed)
        near = norm - values.square().cumsum(-1) <= tol**2 * norm
        if bool(near[:, -1].all()):
            r = 1 + int((~near).sum(-1).max())
            return _with_rest(factor, values[:, :r], vectors[..., :r])
        rank *= 2
    return None


def _with_rest(factor: Tensor, values: Tensor, vectors: Tensor) -> Basis:
    """The pairs, and the mean of the other eigenvalues."""
    values, size = values.clamp(min=0), factor.shape[-1]
    traces = factor.diagonal(dim1=-2, dim2=-1).sum(-1)
    rest = (traces - values.sum(-1)).clamp(min=0) / (size - values.shape[-1])
    return Basis(vectors.contiguous(), torch.cat([values, rest[:, None]], dim=-1), size)
