"""A run's results in Python: `skerch.load("runs/digits")[300, "test"].eigenvalues`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skerch.curvature.operator import LossCurvature
from skerch.curvature.parameters import select_parameters
from skerch.errors import ShapeError, SkerchError
from skerch.jobs import problems
from skerch.jobs.commands import part
from skerch.jobs.config import Config
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.run_dir.training_files import load_model
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs
from skerch.jobs.stages.operator import curvature_operator


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

    def __getitem__(self, key: tuple[int, str]) -> Any:
        """The results of one Hessian: a `Hessian` with what the method finds of it."""
        hessians = [(hessian.step, hessian.split) for hessian in self]
        if key not in hessians:
            raise NoHessianError(
                f"{self.directory.path} has no Hessian {key!r}; take one as run[step, split], with "
                f"a step of {self.steps} and a split of {self.splits}."
            )
        return self._hessian(*hessians[hessians.index(key)])

    def __iter__(self) -> Iterator[Any]:
        return (self._hessian(*hessian) for hessian in self.directory.hessians(self.config))

    def _hessian(self, step: int, split: str) -> Any:
        context = Context(self.directory, self.config, self.name, step, split)
        return part.of(self.config, "load").found(step, split, context)

    def __repr__(self) -> str:
        asked = part.of(self.config, "load").asked(self.config)
        return (
            f"Run({str(self.directory.path)!r}, {self.name}: {asked}, steps {self.steps}, "
            f"splits {self.splits})"
        )


@dataclass(frozen=True, repr=False)
class Hessian:
    """One Hessian, or another curvature, at one step, of one split; tensors are on the CPU.

    N is the number of parameters that it is of, in the order of `skerch.curvature.parameters`.
    Each file is opened when something is read from it; `SkerchError` is raised for one that is not
    there, damaged, or of other measurements.
    """

    step: int
    split: str
    context: Context

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

    @property
    def where(self) -> str:
        """The method's folder, the step and the split, in words."""
        return f"{self.context.name}, step {self.step}, {self.split} split"
