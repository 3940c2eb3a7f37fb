"""Kronecker factors in Python: `skerch.load("runs/digits")[300, "test"].approximation()`."""

from __future__ import annotations

from dataclasses import dataclass

from skerch.analysis.results import KroneckerResults
from skerch.jobs.commands import load
from skerch.jobs.commands.kronecker.results import read, title
from skerch.jobs.config import Config
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.kronecker import KroneckerFiles
from skerch.kronecker.methods.base import Tensors
from skerch.kronecker.operator import KroneckerOperator


def asked(config: Config) -> str:
    """What is asked for, in words."""
    return title(config)


def found(step: int, split: str, context: Context) -> Kronecker:
    """What the method finds of one Hessian."""
    return Kronecker(step, split, context)


@dataclass(frozen=True, repr=False)
class Kronecker(load.Hessian):
    """A Kronecker-factored Fisher matrix; `operator()` is the Fisher matrix itself."""

    @property
    def results(self) -> KroneckerResults:
        """All that was found, in plain numbers."""
        return read(self.context.run.result(self.context.config, self.step, self.split))

    def approximation(self) -> KroneckerOperator:
        """The approximation as an operator, with inverses; read without the network."""
        return self._files.operator()

    def factors(self) -> dict[str, Tensors]:
        """S and A by layer, and norms of nearest; or the whole blocks C of autocorrelation."""
        return self._files.factors()

    @property
    def _files(self) -> KroneckerFiles:
        return KroneckerFiles(self.context.directory, self.context.config)

    def __repr__(self) -> str:
        done = self.context.run.result(self.context.config, self.step, self.split).exists()
        return f"Kronecker({self.where}{'' if done else ': not made yet'})"
