"""A later round's test vectors: an orthonormal basis of the range that the round before found.

With Q_r the test vectors of round r ≥ 2 and Y_i the measurements of round i,

    [Q₂ … Q_r] = [Y₁ … Y_{r-1}] P,    Q_r spanning what is new in Y_{r-1} = H Q_{r-1},

so that three rounds and more are a block Lanczos method with full orthogonalisation. They are
orthonormal to rounding, times the cancellation in Y P; what would cancel 8 digits is left out.

A Krylov space may close before all columns are used: that of an eigenvalue of high multiplicity
holds as many of its eigenvectors as a round has columns. Unless the round is the last, fresh random
vectors, orthogonal to all that was measured, then take the place of the columns that Q_r lacks.
Their measurements extend the range; what they tell of H beyond that is not used.

The file has the datasets

- `Q`: Q_r (N, columns), in the array's dtype;
- `map`: P, in float64, zero for fresh columns;
- `gram`: [Y₁ … Y_{r-1}]ᵀ[Y₁ … Y_{r-1}], so that later rounds compute only its further columns;
- `fresh` and `fresh_products`, where there are fresh columns F in this round or before: their
  numbers among all stored columns, and FᵀHZ for the probes Z;

and the attributes `hash`, the SHA-256 of Q and P, and `manifests`, the hashes of the manifests of
the rounds before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import torch
from torch import Tensor
from torch.nn.functional import pad

from skerch.errors import SkerchError
from skerch.hdf5 import Dataset, Reader, attribute, create_dataset, write_arrays
from skerch.measurements.array import MeasurementArray, StoredColumns
from skerch.measurements.gram import balanced, gram, multiply, orthonormalise
from skerch.measurements.team import ALONE, Rows, Team, write_together
from skerch.sketch_operators.gaussian import Gaussian

LEAST_NEW = 1e-6  # of the part of a random vector, squared, that is orthogonal to what was measured
MOST_LATER = 1e5  # likewise, as it grows from round to round where H is definite and not near 0
MOST_CANCELLATION = 1e8  # of ‖diag(‖y_i‖) p_j‖ for a column of Y P: half of float64's digits


class RangeError(SkerchError):
    """A range file that belongs to other arrays."""


def range_map(
    G: Tensor,
    rows: Rows,
    size: int,
    columns: int,
    dtype: torch.dtype,
    before: Tensor | None = None,
    start: int = 0,
    team: Team = ALONE,
) -> Tensor:
    """P in float64, from the Gram matrix G and the rows of [Y₁ … Y_{r-1}].

    `before` is P of the round before, if there is one. The `columns` that are new in P span the
    directions of the largest singular values of Y_{r-1}, less its part in the ranges before. Where
    that has a lower numerical rank, the remaining columns are zero: the size of a round does not
    depend on its numbers.

    With a `start` of so many columns Q₁ (see `skerch.measurements.start`), [Q₁, Y₁ … Y_{r-1}] is
    meant, and `before` of the second round is the unit matrix. Later rounds are then smaller than
    the first, so that all of [Y₁ … Y_{r-1}] may have what is new.
    """
    if before is None:
        B = G.new_zeros(len(G), 0)
        ordered = columns < len(G)
        new = orthonormalise(G, rows, size, dtype, ordered=ordered, team=team).P[:, :columns]
    else:
        B = pad(before, (0, 0, 0, len(G) - len(before)))
        E = torch.eye(len(G), dtype=G.dtype, device=G.device)[:, start or len(before) :]
        T = team.one(lambda: E - B @ (B.T @ (G @ E)))
        scale = float(torch.diagonal(G)[start:].max())
        rest = orthonormalise(T.T @ G @ T, rows, size, dtype, scale, T, team=team)
        new = T @ rest.P[:, :columns]
    cancellation = torch.linalg.norm(torch.diagonal(G).sqrt()[:, None] * new, dim=0)
    most = MOST_CANCELLATION if before is None else MOST_LATER
    new = torch.where(cancellation < most, new, 0.0)
    return torch.cat([B, pad(new, (0, columns - new.shape[1]))], dim=1)


@dataclass(frozen=True)
class Fresh:
    """Random columns F among the test vectors of later rounds, orthogonal to what was measured."""

    numbers: Tensor  # (f,) among all stored columns
    products: Tensor  # (f, q), FᵀHZ for the probes Z


def with_fresh(
    new: Tensor,
    G: Tensor,
    rows: Rows,
    probed: Rows,
    size: int,
    dtype: torch.dtype,
    seed: int,
    before: Fresh | None,
    start: int = 0,
    team: Team = ALONE,
) -> tuple[Fresh | None, Rows, Tensor]:
    """All fresh columns so far, and A and B of Q_r = A B with fresh columns where Q_r lacks some.

    `new` (m', c) are the columns of P that are Q_r's, zero where it lacks one, G is Y'ᵀY'. `rows`
    gives those of Y', and `probed` those of [Y', HZ], to which A joins random vectors.
    """
    lacking = torch.nonzero((new == 0).all(dim=0))[:, 0]
    m, count = len(G), len(lacking)
    if not count:
        return before, rows, new
    drawn = Gaussian((m + count, size), seed=seed, role="fresh").rows(m, m + count)

    def joined(start: int, stop: int) -> Tensor:
        slab = probed(start, stop)
        return torch.cat([slab, drawn[:, start:stop].T.to(slab)], dim=1)

    whole = gram(joined, size, known=G, team=team)
    P = balanced(G, rows, size, dtype, start, team=team).P

    def solve() -> tuple[Tensor, Tensor]:
        B = G.new_zeros(len(whole), count)
        B[:m] = -P @ (P.T @ whole[:m, -count:])
        B[-count:] = torch.eye(count, dtype=G.dtype, device=G.device)
        values, vectors = torch.linalg.eigh(B.T @ whole @ B)
        drawn_sq_norms = torch.diagonal(whole)[-count:]
        there = values > LEAST_NEW * drawn_sq_norms.max()  # few or none, where Y' spans nearly all
        B = B @ torch.where(there, vectors / values.abs().sqrt(), 0.0)
        factor = pad(new, (0, 0, 0, len(whole) - m))
        factor[:, lacking] = B
        return factor, B.T @ whole[:, m:-count]

    factor, products = team.one(solve)
    numbers = m - start + lacking
    if before is not None:
        numbers = torch.cat([before.numbers, numbers])
        products = torch.cat([before.products, products])
    return Fresh(numbers, products), joined, factor


def find_range(
    arrays: list[MeasurementArray],
    path: Path,
    columns: int,
    before: RangeFile | None = None,
    final: bool = True,
    team: Team = ALONE,
) -> None:
    """Write the next round's range file, with `columns` columns, from the rounds so far.

    Unless it is the `final` round, fresh vectors are among them where the range has fewer columns.
    `before` is the range file of the last round, unless that is the first. Raises RangeError where
    the last round was measured with another one.
    """
    last = arrays[-1].manifest
    if last.range_hash != (before.hash if before else None):
        raise RangeError(
            f"{arrays[-1].directory} was measured with another range file than is there now; "
            "delete it to measure it anew."
        )
    with StoredColumns(arrays, probes=False) as rows, StoredColumns(arrays) as probed:
        known, known_map = (before.gram, before.map) if before else (None, None)
        G = gram(rows, rows.size, known=known, team=team)
        own = range_map(G, rows, rows.size, columns, rows.dtype, known_map, rows.start, team)
        P = team.one(lambda: own)
        fresh, B = before.fresh if before else None, P[:, -columns:]
        A: Rows = rows
        if not final:
            fresh, A, B = with_fresh(
                B, G, rows, probed, rows.size, rows.dtype, last.seed, fresh, rows.start, team
            )
        small = {"map": P, "gram": G}
        if fresh:
            small |= {"fresh": fresh.numbers, "fresh_products": fresh.products}
        write_range(path, A, rows.size, B, rows.dtype, small, hashes(arrays), last.block_size, team)


def write_range(
    path: Path,
    A: Rows,
    size: int,
    B: Tensor,
    dtype: torch.dtype,
    small: dict[str, Tensor],
    manifests: str,
    width: int,
    team: Team,
) -> None:
    """Write a range file of Q = A B, the `small` arrays and the hashes; chunks have `width`."""

    def fill(file: h5py.File | None) -> None:
        digest = hashlib.sha256(small["map"].contiguous().numpy().data)
        if file is not None:
            Q = create_dataset(file, "Q", (size, B.shape[1]), str(dtype)[len("torch.") :], width)

        def write(start: int, stop: int, slab: Tensor) -> None:
            digest.update(slab.numpy().data)
            Q[start:stop] = slab.numpy()

        multiply(A, size, B, dtype, write, team)
        if file is not None:
            attributes = {"hash": digest.hexdigest(), "manifests": manifests}
            write_arrays(file, small, attributes)

    write_together(path, fill, team)


class RangeFile(Reader):
    """The range file after the rounds `arrays`, open for reading: use as a context manager.

    Raises RangeError where it is of other rounds.
    """

    def __init__(self, path: Path, arrays: list[MeasurementArray]):
        super().__init__(path)
        last = arrays[-1].directory if arrays else path.parent
        if attribute(self._file, "manifests") != hashes(arrays):
            self._file.close()
            raise RangeError(
                f"{path} is of other measurements than {last}; delete {last.parent} to measure "
                "anew."
            )

    @property
    def hash(self) -> str:
        """The SHA-256 of Q and the map."""
        return str(attribute(self._file, "hash"))

    @property
    def map(self) -> Tensor:
        """P; its last columns give this round's Q."""
        return Dataset(self._file, "map")[...]

    @property
    def fresh(self) -> Fresh | None:
        """The fresh columns of all rounds so far, None where there are none."""
        if "fresh" not in self._file:
            return None
        return Fresh(*(Dataset(self._file, name)[...] for name in ("fresh", "fresh_products")))

    @property
    def gram(self) -> Tensor | None:
        """YᵀY in float64, of the stored columns Y of all rounds before; a start has none."""
        return Dataset(self._file, "gram")[...] if "gram" in self._file else None

    def columns(self, start: int, stop: int) -> Tensor:
        """Columns [start, stop) of Q, (N, stop - start)."""
        return Dataset(self._file, "Q")[:, start:stop]


def hashes(arrays: list[MeasurementArray]) -> str:
    """The hashes of the manifests of some rounds, in one line; what a start has for none."""
    return " ".join(array.hash for array in arrays) or "start"
