"""Krylov methods in Python: `skerch.load("runs/digits", "trace")[300, "test"].trace`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skerch.analysis.results import DensityResults, LanczosResults, TraceResults
from skerch.estimate import Estimate
from skerch.jobs.commands import load
from skerch.jobs.commands.krylov.results import KINDS, title
from skerch.jobs.commands.seigh.load import Eigenpairs
from skerch.jobs.config import Config
from skerch.jobs.run_dir import results_file
from skerch.jobs.stages.context import Context


def asked(config: Config) -> str:
    """What is asked for, in words."""
    return title(config)


def found(step: int, split: str, context: Context) -> Any:
    """What the method finds of one Hessian."""
    kinds = {"lanczos": Lanczos, "trace": Trace, "density": Density}
    return kinds[context.config.method](step, split, context)


def _read(hessian: load.Hessian) -> Any:
    context = hessian.context
    path = context.run.result(context.config, hessian.step, hessian.split)
    return results_file.read(path, KINDS[context.config.method])


@dataclass(frozen=True, repr=False)
class Lanczos(Eigenpairs):
    """k eigenpairs of a Hessian."""

    @property
    def results(self) -> LanczosResults:
        """All that was found, in plain numbers; among it ‖Aw - λw‖ of each pair."""
        results: LanczosResults = _read(self)
        return results


@dataclass(frozen=True, repr=False)
class Trace(load.Hessian):
    """The trace of a Hessian."""

    @property
    def results(self) -> TraceResults:
        """All that was found, in plain numbers."""
        results: TraceResults = _read(self)
        return results

    @property
    def trace(self) -> Estimate:
        """The trace: `value` and `error`, which holds in 95 of 100."""
        return self.results.estimate

    def __repr__(self) -> str:
        done = self.context.run.result(self.context.config, self.step, self.split).exists()
        return f"Trace({self.where}: {self.trace if done else 'not estimated yet'})"


@dataclass(frozen=True, repr=False)
class Density(load.Hessian):
    """The distribution of a Hessian's eigenvalues."""

    @property
    def results(self) -> DensityResults:
        """All that was found, in plain numbers; among it the quadratures' nodes and weights."""
        results: DensityResults = _read(self)
        return results

    @property
    def grid(self) -> Tensor:
        """Where the density is given, (G,), float64."""
        return torch.tensor(self.results.grid, dtype=torch.float64, device="cpu")

    @property
    def density(self) -> Tensor:
        """The density there, (G,), float64."""
        return torch.tensor(self.results.density, dtype=torch.float64, device="cpu")

    def __repr__(self) -> str:
        done = self.context.run.result(self.context.config, self.step, self.split).exists()
        return f"Density({self.where}{'' if done else ': not estimated yet'})"
