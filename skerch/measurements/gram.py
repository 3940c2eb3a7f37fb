"""Orthogonalisation of tall arrays from their Gram matrix, in streaming passes.

Rows come as slabs of a fixed size and partial products are summed in a fixed order in float64, so
that the result has the same bits whoever computes which slab. Nothing of N rows is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from skerch.measurements.team import ALONE, Team

SLAB_ROWS = 4096
ONE_PASS = 1e-10  # least eigenvalue of a Gram matrix, over the largest, that needs no second pass
FLOOR = 1e-14  # of the largest: by which a second pass scales what the first could not resolve
RESOLVED = 1e-8  # eigenvalues of the second pass below this are rounding; the others are near 1

Rows = Callable[[int, int], Tensor]
Copy = Callable[[int, int, Tensor], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis Q = Y P of the range of Y (N x m), and Y = Q R."""

    P: Tensor  # (m, r), float64
    R: Tensor  # (r, m), float64


def slabs(size: int) -> Iterator[tuple[int, int]]:
    """The row ranges of the slabs of an array of `size` rows."""
    return ((start, min(start + SLAB_ROWS, size)) for start in range(0, size, SLAB_ROWS))


def gram(
    rows: Rows,
    size: int,
    transform: Tensor | None = None,
    *,
    team: Team = ALONE,
    copy: Copy | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """(A T)ᵀ (A T) in float64, for the (size, w) array A whose rows `rows(start, stop)` gives.

    Slabs are multiplied where they are, by the members of `team`; the result is on the CPU, as all
    small matrices are. The member that writes gets each slab of A as `copy(start, stop, slab)`.
    """
    total: Tensor | None = None

    def product(start: int, stop: int) -> tuple[Tensor, ...]:
        slab = rows(start, stop)
        wide = slab.double()
        if transform is not None:
            wide = wide @ transform.to(wide.device)
        part = wide.T @ wide
        return (part,) if copy is None else (part, slab)

    def add(start: int, stop: int, part: Tensor, *slab: Tensor) -> None:
        nonlocal total
        total = part if total is None else total.add_(part)
        if copy:
            copy(start, stop, *slab)
        if progress:
            progress(stop, size)

    team.each(slabs(size), product, add)

    def result() -> Tensor:
        assert total is not None
        return total.cpu()

    return team.one(result)


def orthonormalise(
    G: Tensor,
    rows: Rows,
    size: int,
    dtype: torch.dtype,
    scale: float = 0.0,
    team: Team = ALONE,
) -> Basis:
    """The basis of an array Y from its Gram matrix G = YᵀY, with a second pass where needed.

    With G = E diag(l) Eᵀ, P = E diag(l)^(-1/2) loses orthogonality as eps κ(Y)² (float64's eps), so
    that it serves float32 arrays with κ(Y) up to 1e5: ‖QᵀQ - I‖ stays below 1e-5. Otherwise the
    Gram matrix of Y T with T = E diag(max(l, 1e-14 l_0))^(-1/2) is taken too, which leaves the
    rounding of Y P itself, eps κ(Y), and reaches singular values of 1e-11 of the largest (cf.
    CholeskyQR2: Yamamoto, Nakatsukasa, Yanagisawa and Fukaya, ETNA 44, 2015).
    Directions that are zero to rounding are left out, so r ≤ m; the others come in the order of
    Y's singular values, which are the norms of the rows of R. Where Y is a difference of larger
    columns, `scale` is the largest l of those, as rounding is relative to it.
    """
    values, vectors = team.one(lambda: _descending_eigh(G))
    if values[0] <= 0:
        return Basis(G.new_zeros(len(G), 0), G.new_zeros(0, len(G)))
    scale = max(scale, float(values[0]))
    if dtype == torch.float32 and values[-1] > ONE_PASS * scale:
        roots = values.sqrt()
        return Basis(vectors / roots, roots[:, None] * vectors.T)
    roots = values.clamp(min=FLOOR * scale).sqrt()
    T = vectors / roots
    values, rotation = _descending_eigh(gram(rows, size, T, team=team))
    kept = values > RESOLVED
    second, rotation = values[kept].sqrt(), rotation[:, kept]
    R = (second[:, None] * rotation.T) @ (roots[:, None] * vectors.T)
    U, S, Vh = torch.linalg.svd(R, full_matrices=False)
    return Basis(T @ (rotation / second) @ U, S[:, None] * Vh)


def _descending_eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((A + A.T) / 2)
    return values.flip(0), vectors.flip(1)
