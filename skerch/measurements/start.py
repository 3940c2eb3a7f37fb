"""A start: the first round's test vectors are eigenvectors of a neighbouring matrix.

With W the eigenvectors of a matrix near H, and a few random vectors G beside them,

    Q₁ = orth([W, G]),    Y₁ = H Q₁.

Q₁ is kept beside the measurements, so that later rounds find what is new in Y₁ less its part in Q₁,
and H is known on Q₁ as it is on the ranges of later rounds (see `range_finder`, whose file this
is, with the unit matrix as its map).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from skerch.errors import SkerchError
from skerch.measurements.gram import gram, orthonormalise
from skerch.measurements.range_finder import hashes, write_range
from skerch.measurements.team import ALONE, Rows, Team
from skerch.sketch_operators.gaussian import Gaussian


def start_map(
    rows: Rows,
    width: int,
    size: int,
    columns: int,
    dtype: torch.dtype,
    seed: int,
    team: Team = ALONE,
) -> tuple[Rows, Tensor]:
    """A and B (w, columns) of Q₁ = A B, from the `rows` of W (size, width).

    A is [W, G], or the first columns of W where there are more. Columns of Q₁ that W and G do not
    span are zero.

    Raises SkerchError where W is not finite.
    """
    count = max(0, columns - width)
    drawn = Gaussian((max(count, 1), size), seed=seed, role="start").rows(0, count)

    def joined(start: int, stop: int) -> Tensor:
        slab = rows(start, stop)[:, :columns]
        return torch.cat([slab, drawn[:, start:stop].T.to(slab)], dim=1)

    G = gram(joined, size, team=team)
    norms = torch.diagonal(G).sqrt()
    if not torch.isfinite(norms).all():
        wrong = int(torch.nonzero(~torch.isfinite(norms))[0])
        raise SkerchError(f"Column {wrong} of the start is not finite.")
    D = torch.where(norms > 0, 1 / norms, 0.0)
    P = orthonormalise(
        D[:, None] * G * D, joined, size, dtype, of=torch.diag(D), ordered=False, team=team
    ).P
    B = G.new_zeros(columns, columns)
    B[:, : P.shape[1]] = D[:, None] * P
    return joined, B


def write_start(
    path: Path,
    rows: Rows,
    width: int,
    size: int,
    columns: int,
    dtype: torch.dtype,
    seed: int,
    block_size: int,
    team: Team = ALONE,
) -> None:
    """Write the first round's range file, of Q₁ with `columns` columns, from the `rows` of W."""
    A, B = start_map(rows, width, size, columns, dtype, seed, team)
    unit = {"map": torch.eye(columns, dtype=torch.float64, device="cpu")}
    write_range(path, A, size, B, dtype, unit, hashes([]), block_size, team)
