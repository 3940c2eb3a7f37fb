"""Orthogonalisation of tall arrays from their Gram matrix, in streaming passes.

Rows come as slabs of a fixed size and partial products are summed in a fixed order in float64, so
that the result has the same bits whoever computes which slab. Nothing of N rows is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from skerch.hdf5 import even_width
from skerch.measurements.team import ALONE, Range, Rows, Team, Use, Work

SLAB_ROWS = 4096  # of a slab; longer sums of products are less accurate
PIECE_ROWS = 512  # of a slab at a time, which stay in the processor's cache in float64
PANEL_COLUMNS = 96  # at most: fewer make slow products, more compute much of both triangles
ONE_PASS_RATIO = 1e-10  # a Gram matrix with a larger λ_min / λ_max needs no second pass
FLOOR_RATIO = 1e-14  # smaller λ / λ_max, which one pass does not resolve, are raised to this
LEAST_RESOLVED = 1e-8  # smaller eigenvalues of the second pass are rounding; the others are near 1

Copy = Callable[[int, int, Tensor], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis Q = Y P of the range of Y (N x m), and Y = Q R."""

    P: Tensor  # (m, r), float64
    R: Tensor  # (r, m), float64


def slabs(size: int) -> list[Range]:
    """The row ranges of the slabs of an array of `size` rows."""
    return _ranges(0, size, SLAB_ROWS)


def _ranges(start: int, stop: int, step: int) -> list[Range]:
    return [(begin, min(begin + step, stop)) for begin in range(start, stop, step)]


class _Wide:
    """Makes rows float64, and multiplies them by a matrix if there is one."""

    def __init__(self, factor: Tensor | None):
        self._factor = factor
        self._buffers: list[Tensor] = []

    def __call__(self, slab: Tensor) -> Iterator[Tensor]:
        """The converted rows in pieces; each piece overwrites the one before."""
        rows = PIECE_ROWS if slab.device.type == "cpu" else max(1, len(slab))
        return map(self._piece, slab.split(rows))  # type: ignore[no-untyped-call]

    def _piece(self, slab: Tensor) -> Tensor:
        if not self._buffers:
            self._buffers = [slab.new_empty(0, dtype=torch.float64) for _ in range(2)]
            self._factor = None if self._factor is None else self._factor.to(slab.device)
        wide, product = self._buffers
        if self._factor is not None:
            slab = slab[:, : len(self._factor)]
        if slab.dtype != torch.float64:
            slab = wide.resize_(slab.shape).copy_(slab)
        if self._factor is None:
            return slab
        return torch.mm(slab, self._factor, out=product.resize_(len(slab), self._factor.shape[1]))


def multiply(
    rows: Rows, size: int, factor: Tensor, dtype: torch.dtype, use: Use, team: Team = ALONE
) -> None:
    """A B in `dtype`, computed in float64; A (size, w) has the first columns of `rows`.

    B (w, r) is `factor`. The member of the team that writes gets the product's slabs, by
    `use(start, stop, slab)`.
    """

    def worker() -> Work:
        wide = _Wide(factor)
        narrow: Tensor | None = None

        def product(slab: Tensor) -> tuple[Tensor]:
            nonlocal narrow
            if narrow is None:
                narrow = slab.new_empty(0, dtype=dtype)
            narrow.resize_(len(slab), factor.shape[1])
            done = 0
            for piece in wide(slab):
                narrow[done : done + len(piece)] = piece
                done += len(piece)
            return (narrow,)

        return product

    team.each(slabs(size), rows, worker, use)


class _Triangle:
    """The lower triangle of a Gram matrix, without the leading block where it is `known`.

    It is packed: its panels, the blocks [start:stop, :stop], lie one after another.
    """

    def __init__(self, known: Tensor | None):
        self._known = known
        self._first = 0 if known is None else len(known)
        self._panels: list[Range] = []  # once a slab has shown the width

    def _blocks(self, packed: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        end = 0
        for start, stop in self._panels:
            begin, end = end, end + (stop - start) * stop
            yield start, stop, packed[begin:end].view(stop - start, stop)

    def empty(self, A: Tensor) -> Tensor:
        """Uninitialised packed memory for AᵀA."""
        start, stop = self._first, A.shape[1]
        self._panels = _ranges(start, stop, max(1, even_width(stop - start, PANEL_COLUMNS)))
        return A.new_empty(sum((stop - start) * stop for start, stop in self._panels))

    def put(self, packed: Tensor, A: Tensor, beta: int) -> None:
        """packed ← beta · packed + AᵀA."""
        for start, stop, block in self._blocks(packed):
            block.addmm_(A[:, start:stop].T, A[:, :stop], beta=beta)

    def whole(self, packed: Tensor) -> Tensor:
        """The symmetric matrix, on the CPU."""
        width = max([self._first, *(stop for _, stop in self._panels)])
        G = packed.new_zeros(width, width, device="cpu")
        if self._known is not None:
            G[: self._first, : self._first] = self._known
        for start, stop, block in self._blocks(packed):
            G[start:stop, :stop] = block
        return G.tril() + G.tril(-1).T


def gram(
    rows: Rows,
    size: int,
    transform: Tensor | None = None,
    *,
    known: Tensor | None = None,
    team: Team = ALONE,
    copy: Copy | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """(A T)ᵀ (A T) in float64, for the (size, w) array A whose rows `rows(start, stop)` gives.

    A transform T multiplies A's first len(T) columns. Where the leading block of the result is
    `known`, only the rest is computed. The members of `team` multiply slabs on the slabs' own
    device; the result is on the CPU, as all small matrices are. The member that writes gets each
    slab of A, by `copy(start, stop, slab)`.
    """
    triangle = _Triangle(known)
    total = torch.empty(0, device="cpu")

    def worker() -> Work:
        wide = _Wide(transform)
        part: Tensor | None = None

        def product(slab: Tensor) -> tuple[Tensor, ...]:
            nonlocal part
            for number, A in enumerate(wide(slab)):
                if part is None:
                    part = triangle.empty(A)
                triangle.put(part, A, beta=min(1, number))
            assert part is not None
            return (part,) if copy is None else (part, slab)

        return product

    def add(start: int, stop: int, part: Tensor, *slab: Tensor) -> None:
        nonlocal total
        total = part.clone() if start == 0 else total.add_(part)
        if copy:
            copy(start, stop, *slab)
        if progress:
            progress(stop, size)

    team.each(slabs(size), rows, worker, add)
    return team.one(lambda: triangle.whole(total))


def orthonormalise(
    G: Tensor,
    rows: Rows,
    size: int,
    dtype: torch.dtype,
    scale: float = 0.0,
    of: Tensor | None = None,
    ordered: bool = True,
    team: Team = ALONE,
) -> Basis:
    """The basis of an array Y from its Gram matrix G = YᵀY, with a second pass where needed.

    With G = E diag(l) Eᵀ, P = E diag(l)^(-1/2) loses orthogonality as eps κ(Y)² (float64's eps), so
    that it serves float32 arrays with κ(Y) up to 1e5: ‖QᵀQ - I‖ stays below 1e-5. Otherwise the
    Gram matrix of Y T with T = E diag(max(l, 1e-14 l_0))^(-1/2) is taken too, which leaves the
    rounding of Y P itself, eps κ(Y), and reaches singular values of 1e-11 of the largest (cf.
    CholeskyQR2: Yamamoto, Nakatsukasa, Yanagisawa and Fukaya, ETNA 44, 2015).
    Directions that are zero to rounding are left out, so r ≤ m; the others come in the order of
    Y's singular values, which are the norms of the rows of R. Where they need not be `ordered`, one
    pass takes Cholesky's P = R⁻¹, in a tenth of the time.

    Where Y = A T' is a difference of larger columns A, `rows` gives A, `of` is T', and `scale` is
    the largest l of A, as rounding is relative to that.
    """
    if not ordered and dtype == torch.float32:
        basis = team.one(lambda: _by_cholesky(G))
        if basis is not None:
            return basis
    values, vectors = team.one(lambda: _descending_eigh(G))
    if values[0] <= 0:
        return Basis(G.new_zeros(len(G), 0), G.new_zeros(0, len(G)))
    scale = max(scale, float(values[0]))
    if dtype == torch.float32 and values[-1] > ONE_PASS_RATIO * scale:
        roots = values.sqrt()
        return Basis(vectors / roots, roots[:, None] * vectors.T)
    roots = values.clamp(min=FLOOR_RATIO * scale).sqrt()
    T = vectors / roots
    second_pass = gram(rows, size, T if of is None else of @ T, team=team)
    values, rotation = team.one(lambda: _descending_eigh(second_pass))
    kept = values > LEAST_RESOLVED
    second, rotation = values[kept].sqrt(), rotation[:, kept]
    R = (second[:, None] * rotation.T) @ (roots[:, None] * vectors.T)
    U, S, Vh = torch.linalg.svd(R, full_matrices=False)
    return Basis(T @ (rotation / second) @ U, S[:, None] * Vh)


def balanced(
    G: Tensor,
    rows: Rows,
    size: int,
    dtype: torch.dtype,
    start: int,
    ordered: bool = True,
    team: Team = ALONE,
) -> Basis:
    """`orthonormalise`, with the first `start` columns, of unit norm, made as large as the others.

    Else those of a matrix that is very small or very large would not be told from rounding.
    """
    if not start:
        return orthonormalise(G, rows, size, dtype, ordered=ordered, team=team)
    D = G.new_ones(len(G))
    largest = float(torch.diagonal(G)[start:].amax()) if len(G) > start else 0.0
    D[:start] = largest**0.5 or 1.0
    T = torch.diag(D)
    basis = orthonormalise(D[:, None] * G * D, rows, size, dtype, 0.0, T, ordered, team)
    return Basis(D[:, None] * basis.P, basis.R / D)


def _by_cholesky(G: Tensor) -> Basis | None:
    """G = RᵀR and P = R⁻¹, unless 1/‖P‖_F², which bounds G's least eigenvalue below, is low."""
    R, failed = torch.linalg.cholesky_ex(G, upper=True)
    if failed:
        return None
    P = torch.linalg.solve_triangular(
        R, torch.eye(len(R), dtype=R.dtype, device=R.device), upper=True
    )
    condition = float(torch.linalg.norm(G)) * float(P.square().sum())
    return Basis(P, R) if condition < 1 / ONE_PASS_RATIO else None


def _descending_eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((A + A.T) / 2)
    return values.flip(0), vectors.flip(1)
