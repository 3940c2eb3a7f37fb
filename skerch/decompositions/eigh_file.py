"""The file of a decomposition: eigenpairs of a stored array, written in one streaming pass.

`write_pairs` writes eigenpairs from elsewhere, of which not all of this is known.

Datasets `eigenvalues` (k,), `eigenvectors` (N, k), `residual` (k + 1,), the estimated ‖H - H_r‖_F,
`pair_residual` (k,), the estimated ‖H w_i - λ_i w_i‖, and `pair_bound` (k,), a bound of it,
`eigenvalue_bound` (k,), how far an eigenvalue of H may be from λ_i, and `trace` and `norm` (2,), of
H, each with its error; attributes `manifests` (the hashes of the measured rounds' manifests),
`probes`, `recovery`, the recovery's health figures, and `beyond`: the other eigenvalues are taken
to lie within ± this.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import torch
from torch import Tensor

from skerch.a_posteriori import eigenspace_sines
from skerch.decompositions.solve import Solution
from skerch.estimate import Estimate
from skerch.hdf5 import (
    CHUNK_ROWS,
    Dataset,
    Reader,
    attribute,
    create_dataset,
    even_width,
    write_arrays,
    write_hdf5,
)
from skerch.measurements.gram import Progress, multiply
from skerch.measurements.team import ALONE, Rows, Team, write_together

CHUNK_COLUMNS = 64  # at most


def write_eigh(
    path: Path,
    solution: Solution,
    rows: Rows,
    size: int,
    dtype: str,
    attributes: dict[str, object],
    progress: Progress | None = None,
    team: Team = ALONE,
) -> None:
    """Write the solution, its eigenvectors Y B slab by slab from the rows of Y (`size`, m).

    All members of the team have the same solution.
    """
    B = solution.coefficients

    def fill(file: h5py.File | None) -> None:
        if file is not None:
            small = {
                "eigenvalues": solution.eigenvalues,
                "residual": solution.residual,
                "pair_residual": solution.pair_residual,
                "pair_bound": solution.pair_bound,
                "eigenvalue_bound": solution.eigenvalue_bound,
                "norm": torch.tensor(solution.norm, dtype=torch.float64, device="cpu"),
            }
            if solution.trace:
                small["trace"] = torch.tensor(solution.trace, dtype=torch.float64, device="cpu")
            health = {f"health_{name}": value for name, value in solution.health.items()}
            write_arrays(file, small, attributes | health | {"beyond": solution.beyond})
            shape = size, B.shape[1]
            vectors = create_dataset(
                file, "eigenvectors", shape, dtype, even_width(shape[1], CHUNK_COLUMNS)
            )

        def write(start: int, stop: int, slab: Tensor) -> None:
            vectors[start:stop] = slab.numpy()
            if progress:
                progress(stop, size)

        multiply(rows, size, B, getattr(torch, dtype), write, team)

    write_together(path, fill, team)


def write_pairs(
    path: Path, vectors: Tensor, arrays: dict[str, Tensor], attributes: dict[str, object]
) -> None:
    """Write eigenvectors (N, k) that are in memory, and the smaller datasets."""

    def fill(file: h5py.File) -> None:
        write_arrays(file, arrays, attributes)
        width = even_width(vectors.shape[1], CHUNK_COLUMNS)
        dtype = str(vectors.dtype).removeprefix("torch.")
        stored = create_dataset(file, "eigenvectors", tuple(vectors.shape), dtype, width)
        for start in range(0, len(vectors), CHUNK_ROWS):
            stored[start : start + CHUNK_ROWS] = vectors[start : start + CHUNK_ROWS].cpu().numpy()

    write_hdf5(path, fill)


class EighFile(Reader):
    """A decomposition's file, open for reading: use as a context manager."""

    @property
    def eigenvalues(self) -> Tensor:
        """λ (k,), by decreasing magnitude."""
        return Dataset(self._file, "eigenvalues")[...]

    @property
    def eigenvectors(self) -> Dataset:
        """W (N, k), read by slices."""
        return Dataset(self._file, "eigenvectors")

    @property
    def residual(self) -> Tensor:
        """Estimated ‖H - H_r‖_F for r = 0 … k, (k + 1,)."""
        return Dataset(self._file, "residual")[...]

    @property
    def pair_residual(self) -> Tensor | None:
        """Estimated ‖H w_i - λ_i w_i‖, (k,); None in files of older versions."""
        return self._optional("pair_residual")

    @property
    def eigenvalue_bound(self) -> Tensor | None:
        """How far an eigenvalue of H may be from λ_i, in 95 of 100, (k,); None in older files."""
        return self._optional("eigenvalue_bound")

    @property
    def pair_bound(self) -> Tensor | None:
        """Upper bounds of ‖H w_i - λ_i w_i‖ in 95 of 100, (k,); None in older files."""
        return self._optional("pair_bound")

    @property
    def sines(self) -> Tensor | None:
        """How far each w_i may lie outside the top-j eigenspace, (k, k); None in older files.

        See `skerch.a_posteriori.eigenspace_sines`.
        """
        rho, bound = self.pair_bound, self.eigenvalue_bound
        if rho is None or bound is None:
            return None
        beyond = float(attribute(self._file, "beyond"))
        return eigenspace_sines(self.eigenvalues, rho, bound, beyond)

    @property
    def trace(self) -> Estimate | None:
        """The trace of H with its error; None where older versions measured."""
        return self._estimate("trace")

    @property
    def norm(self) -> Estimate | None:
        """‖H‖_F with its error; None in older files."""
        return self._estimate("norm")

    def _estimate(self, name: str) -> Estimate | None:
        found = self._optional(name)
        return None if found is None else Estimate(*found.tolist())

    def _optional(self, name: str) -> Tensor | None:
        return Dataset(self._file, name)[...] if name in self._file else None

    @property
    def asymmetry(self) -> float:
        """‖M - Mᵀ‖ / ‖M‖ for M = XᵀHX; 0 from a recovery that cannot tell."""
        return float(self._file.attrs.get("health_asymmetry", 0.0))

    @property
    def probes(self) -> int:
        """The number of probes behind the estimate."""
        return int(attribute(self._file, "probes"))
