"""A run's results in Python: `skerch.load("runs/digits")[300, "test"].eigenvalues`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skerch.analysis.results import HessianResults
from skerch.curvature.operator import LossCurvature
from skerch.curvature.parameters import select_parameters
from skerch.errors import ShapeError, SkerchError
from skerch.estimate import Estimate
from skerch.jobs import problems
from skerch.jobs.config import Config
from skerch.jobs.run_dir import RunDir, method_name, overlap_file
from skerch.jobs.run_dir.training_files import load_model
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs
from skerch.jobs.stages.operator import curvature_operator
from skerch.jobs.stages.sketch import SketchFiles


class NoHessianError(SkerchError):
    """A step or a split that a run does not have."""


def load(run: str | os.PathLike[str], name: str | None = None) -> Run:
    """The results in a run directory, of the method called `name`; by default of the latest run.

    Nothing is read but the config until it is asked for, and nothing is computed. Raises
    `SkerchError` where there is no such run or method.
    """
    directory = RunDir(Path(run).expanduser())
    return Run(directory, directory.load(name))


@dataclass(frozen=True, repr=False)
class Run:
    """One method's results in a run directory: `run[step, split]` is those of one Hessian.

    Iterating goes over all of them, done or not, by step and split.
    """

    directory: RunDir
    config: Config

    @property
    def name(self) -> str:
        """The method's folder."""
        return method_name(self.config)

    @property
    def names(self) -> list[str]:
        """The methods that the run directory has, each to be loaded by its name."""
        return self.directory.methods

    @property
    def steps(self) -> list[int]:
        """The training steps whose Hessians are wanted."""
        return list(dict.fromkeys(step for step, _ in self.directory.hessians(self.config)))

    @property
    def splits(self) -> list[str]:
        """The splits whose Hessians are wanted."""
        return list(dict.fromkeys(split for _, split in self.directory.hessians(self.config)))

    def __getitem__(self, key: tuple[int, str]) -> Hessian:
        hessians = [(hessian.step, hessian.split) for hessian in self]
        if key not in hessians:
            raise NoHessianError(
                f"{self.directory.path} has no Hessian {key!r}; take one as run[step, split], with "
                f"a step of {self.steps} and a split of {self.splits}."
            )
        return self._hessian(*hessians[hessians.index(key)])

    def __iter__(self) -> Iterator[Hessian]:
        return (self._hessian(*hessian) for hessian in self.directory.hessians(self.config))

    def _hessian(self, step: int, split: str) -> Hessian:
        return Hessian(step, split, Context(self.directory, self.config, self.name, step, split))

    def __repr__(self) -> str:
        sketch = self.config.sketch
        return (
            f"Run({str(self.directory.path)!r}, {self.name}: {sketch.outer} eigenpairs from "
            f"{sketch.inner} matvecs, steps {self.steps}, splits {self.splits})"
        )


@dataclass(frozen=True, repr=False)
class Hessian:
    """What was found of the Hessian at one step, of one split; tensors are on the CPU.

    N is the number of parameters that the Hessian is of, in the order of
    `skerch.curvature.parameters`, and k that of the eigenpairs. Each file is opened when something
    is read from it; `SkerchError` is raised for one that is not there, damaged, or of other
    measurements.
    """

    step: int
    split: str
    context: Context

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
        return overlap_file.read(self.context.directory.overlap)

    @property
    def overlap(self) -> Tensor:
        """‖W[mask, :j]‖_F² / j with the j largest parameters, j = 1 … k, (k,), float64."""
        return torch.tensor(self.results.overlap, dtype=torch.float64, device="cpu")

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters that the Hessian is of, as they were at its step, by name."""
        config = self.context.config
        problem = problems.load_problem(config.problem, config.problem_path)
        model = load_model(self.context.run, problem, self.step)
        selected = select_parameters(model, config.hessian.param_filter)
        return {name: parameter.detach() for name, parameter in selected.items()}

    def by_name(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector (N,) in the parameters' shapes by name; raises `ShapeError` for another one."""
        sizes = {name: parameter.numel() for name, parameter in self.parameters.items()}
        if vector.shape != (sum(sizes.values()),):
            raise ShapeError(
                f"A vector over the parameters is of shape ({sum(sizes.values())},), not "
                f"{tuple(vector.shape)}."
            )
        parts = zip(self.parameters.items(), torch.split(vector, list(sizes.values())), strict=True)
        return {name: part.view(parameter.shape) for (name, parameter), part in parts}

    def operator(self) -> LossCurvature:
        """The Hessian itself, as it was measured: `h.operator() @ v` for v (N,) or (N, b)."""
        recorded = self.context.provenance
        return curvature_operator(self.context.config, load_inputs(self.context), recorded)

    def __repr__(self) -> str:
        context = self.context
        where = f"{context.name}, step {self.step}, {self.split} split"
        if not context.directory.eigh.exists():
            return f"Hessian({where}: not decomposed yet)"
        N, k = self.eigenvectors.shape
        top = ", ".join(f"{value:.4g}" for value in self.eigenvalues[:3].tolist())
        return f"Hessian({where}: {k} eigenpairs of N = {N:,}, eigenvalues {top}, …)"


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
