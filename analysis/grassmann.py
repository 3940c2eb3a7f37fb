"""How far two subspaces are apart: principal angles, and the metrics that they give.

For orthonormal bases O₁ (N, k₁) and O₂ (N, k₂), the m = min(k₁, k₂) principal angles θ are

    cos θ = singular values of O₁ᵀO₂,    sin θ = singular values of O₂ - O₁O₁ᵀO₂,

the least m of them. An arccos loses half of the digits where θ is near 0, and an arcsin where it is
near π/2, so that θ is found from both (Björck and Golub 1973). With one QR decomposition

    [O₁, O₂] = Q [R₁₁ R₁₂; 0 R₂₂]

they are the singular values of R₁₂ and R₂₂, up to a change of basis that makes [R₁₂; R₂₂]
orthonormal: the columns may be any basis of their subspace. R comes from one pass over row slabs,
R ← R of [R; slab], and Q is never formed (Demmel, Grigori, Hoemmen and Langou 2012). A squared
matrix would lose the digits of small sines. The basis of a mask is unit vectors, so that R₁₂ and
R₂₂ are the R of its rows of O₂, and of the others.

Metrics are of Edelman, Arias and Smith 1998, section 4.3. Where k₁ ≠ k₂ they are of the m angles: a
distance is 0, and the overlap is 1, if one subspace contains the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from skerch.analysis.overlap import SLAB_ENTRIES, RowSlabs
from skerch.errors import ShapeError, SkerchError

Subspace: TypeAlias = RowSlabs  # a basis (N, k), or a mask: the indices (k,) of unit vectors
LEAST_SINE = 1e-12  # of the angle between a column of a basis and the span of those before it


@dataclass(frozen=True)
class PrincipalAngles:
    """Principal angles of subspaces of dimensions k₁ and k₂, m = min(k₁, k₂); float64."""

    cosines: Tensor  # (…, m), the largest first
    sines: Tensor  # (…, m), the least first
    dimensions: tuple[int, int]  # k₁ and k₂

    @property
    def angles(self) -> Tensor:
        """θ in [0, π/2], (…, m), the least first."""
        return torch.atan2(self.sines, self.cosines)


@dataclass(frozen=True)
class Metric:
    """A number for two subspaces, of their principal angles.

    `baseline` tells what independent, uniformly random subspaces or masks have: the mean of the
    overlap, the root mean square of the projection's Frobenius norm, and the Fubini-Study angle of
    the mean squared cosine. It is None where no closed form is known.
    """

    formula: str
    value: Callable[[PrincipalAngles], Tensor]  # (…)
    greatest: Callable[[int, int], float]  # for k₁ and k₂; the least is 0
    baseline: Callable[[int, int, int], float] | None = None  # for N, k₁ and k₂

    def normalized(self, angles: PrincipalAngles) -> Tensor:
        """The value over the greatest, in [0, 1]."""
        return self.value(angles) / self.greatest(*angles.dimensions)


def _chords(angles: PrincipalAngles) -> Tensor:
    """2 sin(θ/2)."""
    return 2 * (angles.angles / 2).sin()


def _shared(angles: PrincipalAngles) -> Tensor:
    """‖O₁ᵀO₂‖_F²; of two masks, how many indices they share."""
    return angles.cosines.square().sum(-1)


def _fubini_study(angles: PrincipalAngles) -> Tensor:
    """arccos Π cos θ, by the logarithm of Π cos² θ: the product of many cosines underflows."""
    cosines, sines = angles.cosines.square(), angles.sines.square()
    logarithm = torch.where(sines < 0.5, torch.log1p(-sines), cosines.log()).sum(-1)
    return torch.atan2((0 - torch.expm1(logarithm)).sqrt(), (logarithm / 2).exp())


def _fubini_study_baseline(n: int, *dimensions: int) -> float:
    """arccos √(C(max k, m) / C(N, m)): the mean Π cos² θ is how likely random masks are nested."""
    m, largest = min(dimensions), max(dimensions)
    logarithm = sum(math.log((largest - i) / (n - i)) for i in range(m))
    return math.acos(math.exp(logarithm / 2))


METRICS: dict[str, Metric] = {
    "geodesic": Metric(
        formula="‖θ‖₂",
        value=lambda angles: angles.angles.norm(dim=-1),
        greatest=lambda *dimensions: math.sqrt(min(dimensions)) * math.pi / 2,
    ),
    "chordal_2": Metric(
        formula="max 2 sin(θ/2)",
        value=lambda angles: _chords(angles).amax(-1),
        greatest=lambda *_: math.sqrt(2),
    ),
    "chordal_frobenius": Metric(
        formula="‖2 sin(θ/2)‖₂",
        value=lambda angles: _chords(angles).norm(dim=-1),
        greatest=lambda *dimensions: math.sqrt(2 * min(dimensions)),
    ),
    "projection_2": Metric(
        formula="max sin θ",
        value=lambda angles: angles.sines.amax(-1),
        greatest=lambda *_: 1.0,
    ),
    "projection_frobenius": Metric(
        formula="‖sin θ‖₂",
        value=lambda angles: angles.sines.norm(dim=-1),
        greatest=lambda *dimensions: math.sqrt(min(dimensions)),
        baseline=lambda n, *ks: math.sqrt(min(ks) * (1 - max(ks) / n)),
    ),
    "fubini_study": Metric(
        formula="arccos Π cos θ",
        value=_fubini_study,
        greatest=lambda *_: math.pi / 2,
        baseline=_fubini_study_baseline,
    ),
    "overlap": Metric(
        formula="‖cos θ‖₂² / m",
        value=lambda angles: _shared(angles) / min(angles.dimensions),
        greatest=lambda *_: 1.0,
        baseline=lambda n, *ks: max(ks) / n,
    ),
    "iou": Metric(  # of two masks: intersection over union
        formula="‖cos θ‖₂² / (k₁ + k₂ - ‖cos θ‖₂²)",
        value=lambda angles: _shared(angles) / (sum(angles.dimensions) - _shared(angles)),
        greatest=lambda *dimensions: min(dimensions) / max(dimensions),
    ),
}


def principal_angles(
    first: Subspace, second: Subspace, *, slab_rows: int | None = None
) -> PrincipalAngles:
    """Principal angles between two subspaces of R^N.

    Each is a basis (N, k), or a mask's indices (k,). Bases may be larger than memory: they are read
    once, in slabs of `slab_rows` rows, and (k₁ + k₂)² numbers are kept.

    Raises `ShapeError` unless the two are of one space, and `SkerchError` where the columns of a
    basis are not finite or not independent, or a mask's indices are not distinct.
    """
    for each in (first, second):
        if "complex" in str(getattr(each, "dtype", "")):
            raise SkerchError(
                "Subspaces are of real vectors; a complex basis would lose its imaginary part."
            )
    match [len(first.shape), len(second.shape)]:
        case _ if 0 in (*first.shape, *second.shape):
            raise ShapeError("A subspace has at least one dimension.")
        case [2, 2] if first.shape[0] == second.shape[0]:
            inside, outside = _bases(first, second, slab_rows)
        case [2, 1]:
            inside, outside = _basis_and_mask(first, _indices(second, first.shape[0]), slab_rows)
        case [1, 2]:
            inside, outside = _basis_and_mask(second, _indices(first, second.shape[0]), slab_rows)
        case [1, 1]:
            return _masks(_indices(first), _indices(second))
        case _:
            raise ShapeError(
                "Two subspaces are bases (N, k) of the same N, or masks (k,) of indices, not of "
                f"shapes {tuple(first.shape)} and {tuple(second.shape)}."
            )
    return from_blocks(inside, outside, (first.shape[-1], second.shape[-1]))


def from_blocks(inside: Tensor, outside: Tensor, dimensions: tuple[int, int]) -> PrincipalAngles:
    """Principal angles of a basis from its blocks within and outside of the other subspace.

    `inside` (…, p, k) has the coordinates of the basis in an orthonormal basis of the other
    subspace, and `outside` (…, q, k), q >= k, those in its complement. Either may be the R of its
    QR decomposition, or have rows of zeros.
    """
    m = min(dimensions)
    Q = _independent(*torch.linalg.qr(torch.cat([inside, outside], dim=-2)))
    p = inside.shape[-2]
    cosines = torch.linalg.svdvals(Q[..., :p, :])[..., :m]
    sines = torch.linalg.svdvals(Q[..., p:, :]).flip(-1)[..., :m]
    return PrincipalAngles(cosines.clamp(max=1), sines.clamp(max=1), dimensions)


def _bases(first: RowSlabs, second: RowSlabs, slab_rows: int | None) -> tuple[Tensor, Tensor]:
    """R₁₂ and R₂₂ of two bases."""
    k1, k2 = first.shape[1], second.shape[1]
    R = _zeros(k1 + k2)
    for a, b in zip(
        _slabs(first, k1 + k2, slab_rows), _slabs(second, k1 + k2, slab_rows), strict=True
    ):
        R = _append(R, torch.cat([a, b], dim=1))
    _independent(R[:k1, :k1], R[:k1, :k1])
    return R[:k1, k1:], R[k1:, k1:]


def _basis_and_mask(basis: RowSlabs, mask: Tensor, slab_rows: int | None) -> tuple[Tensor, Tensor]:
    """R of a basis's rows in a mask, and of the others."""
    N, k = basis.shape
    member = torch.zeros(N, dtype=torch.bool, device="cpu")
    member[mask] = True
    inside = outside = _zeros(k)
    start = 0
    for slab in _slabs(basis, k, slab_rows):
        here = member[start : start + len(slab)]
        inside, outside = _append(inside, slab[here]), _append(outside, slab[~here])
        start += len(slab)
    return inside, outside


def _masks(first: Tensor, second: Tensor) -> PrincipalAngles:
    """Principal angles of two masks: 0 for each index that they share, and π/2."""
    m = min(len(first), len(second))
    shared = int(torch.isin(first, second).sum())
    cosines = (torch.arange(m, device="cpu") < shared).double()
    return PrincipalAngles(cosines, 1 - cosines, (len(first), len(second)))


def _slabs(basis: RowSlabs, columns: int, slab_rows: int | None) -> Iterator[Tensor]:
    """The rows of a basis in float64, in slabs that have more rows than R has `columns`."""
    rows = slab_rows or max(4 * columns, SLAB_ENTRIES // max(1, columns))
    for start in range(0, basis.shape[0], rows):
        yield torch.as_tensor(basis[start : start + rows], device="cpu").detach().double()


def _zeros(k: int) -> Tensor:
    """R (k, k) of no rows."""
    return torch.zeros(k, k, dtype=torch.float64, device="cpu")


def _append(R: Tensor, rows: Tensor) -> Tensor:
    """R (k, k) of more rows (n, k)."""
    longer: Tensor = torch.linalg.qr(torch.cat([R, rows]), mode="r").R
    return longer


def _independent(result: Tensor, R: Tensor) -> Tensor:
    """The result, if R (…, k, k) is of finite columns, none in the span of those before it."""
    sines = R.diagonal(dim1=-2, dim2=-1).abs() / R.norm(dim=-2)
    independent = sines > LEAST_SINE
    if independent.all():
        return result
    column = int((~independent).nonzero()[0, -1])
    what = "depends on those before it" if R.isfinite().all() else "is not finite"
    raise SkerchError(
        f"Column {column} of a basis (N, {R.shape[-1]}) {what}: the columns span no subspace of "
        "that dimension; leave it out."
    )


def _indices(mask: RowSlabs, n: int | None = None) -> Tensor:
    """The indices of a mask (k,), if it is one, of n parameters."""
    indices = torch.as_tensor(mask[:], device="cpu")
    if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
        raise SkerchError(
            f"A mask (k,) holds indices of parameters, not {indices.dtype}; a Boolean vector has "
            "them in its nonzero()."
        )
    indices = indices.long()
    repeated = len(indices) - len(torch.unique(indices))
    if repeated:
        raise SkerchError(f"A mask's indices are distinct; {repeated} of {len(indices)} repeat.")
    least, largest = int(indices.min()), int(indices.max())
    if least < 0 or (n is not None and largest >= n):
        raise SkerchError(
            f"A mask has indices from 0 to {'N' if n is None else n} - 1, not {least} to {largest}."
        )
    return indices
