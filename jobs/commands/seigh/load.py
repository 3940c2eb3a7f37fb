"""A sketched eigendecomposition in Python: `skerch.load("runs/digits")[300, "test"]`."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skerch.analysis.results import HessianResults
from skerch.errors import SkerchError
from skerch.estimate import Estimate
from skerch.jobs.commands import load
from skerch.jobs.config import Config
from skerch.jobs.run_dir import results_file
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.sketch import SketchFiles


def asked(config: Config) -> str:
    """What is asked for, in words."""
    return f"{config.sketch.outer} eigenpairs from {config.sketch.inner} matvecs"


@dataclass(frozen=True, repr=False)
class Eigenpairs(load.Hessian):
    """k eigenpairs of a Hessian, and their overlap."""

    @property
    def results(self) -> HessianResults:
        """What the analysis found: the overlap with its baseline, quantiles of chance, bounds."""
        raise NotImplementedError

    @property
    def eigenvalues(self) -> Tensor:
        """λ (k,), float64, by decreasing magnitude."""
        with SketchFiles(self.context).eigh() as file:
            return file.eigenvalues

    @property
    def eigenvalue_bound(self) -> Tensor | None:
        """How far an eigenvalue of H may be from each λ_i, in 95 of 100, (k,); None if unknown."""
        with SketchFiles(self.context).eigh() as file:
            return file.eigenvalue_bound

    @property
    def eigenvectors(self) -> Eigenvectors:
        """W (N, k), orthonormal columns, of which slices are read: `h.eigenvectors[:, :10]`."""
        return Eigenvectors(self.context)

    def eigenvector(self, i: int) -> dict[str, Tensor]:
        """The eigenvector of the i-th eigenvalue, from 0 on, in the parameters' shapes by name."""
        return self.by_name(self.eigenvectors[:, i])

    @property
    def overlap(self) -> Tensor:
        """‖W[mask, :j]‖_F² / j with the j largest parameters, j = 1 … k, (k,), float64."""
        return torch.tensor(self.results.overlap, dtype=torch.float64, device="cpu")

    def __repr__(self) -> str:
        if not self.context.directory.eigh.exists():
            return f"Hessian({self.where}: not decomposed yet)"
        N, k = self.eigenvectors.shape
        top = ", ".join(f"{value:.4g}" for value in self.eigenvalues[:3].tolist())
        return f"Hessian({self.where}: {k} eigenpairs of N = {N:,}, eigenvalues {top}, …)"


@dataclass(frozen=True, repr=False)
class Hessian(Eigenpairs):
    """A Hessian's sketched eigendecomposition."""

    @property
    def residual(self) -> Tensor:
        """Estimated ‖H - H_r‖_F for r = 0 … k, (k + 1,), float64; the first is ‖H‖_F."""
        with SketchFiles(self.context).eigh() as file:
            return file.residual

    @property
    def trace(self) -> Estimate | None:
        """The trace of H: `value` and `error`, which holds in 95 of 100; None if unknown."""
        with SketchFiles(self.context).eigh() as file:
            return file.trace

    @property
    def norm(self) -> Estimate | None:
        """‖H‖_F, likewise."""
        with SketchFiles(self.context).eigh() as file:
            return file.norm

    @property
    def results(self) -> HessianResults:
        """What the analysis found: the overlap with its baseline, quantiles of chance, bounds."""
        return results_file.read(self.context.directory.overlap, HessianResults)


class Eigenvectors:
    """Eigenvectors (N, k) in a file, of which a slice is read when it is asked for."""

    def __init__(self, context: Context):
        self._context = context
        with SketchFiles(context).eigh() as file:
            self.shape, self.dtype = file.eigenvectors.shape, file.eigenvectors.dtype

    def __getitem__(self, key: Any) -> Tensor:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, int | np.integer | slice | EllipsisType) for part in parts):
            raise SkerchError(
                "Eigenvectors are read by slices, as in [:, :10]; select others from all of them, "
                "[:]."
            )
        torch.empty((), device="meta").expand(self.shape)[
            key
        ]  # raises what a tensor of this shape would
        with SketchFiles(self._context).eigh() as file:
            return file.eigenvectors[key]

    def __repr__(self) -> str:
        return f"Eigenvectors({self.shape}, {self.dtype}, read by slices)"


found = Hessian
