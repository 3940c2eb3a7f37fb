"""What a stage gets: which part of which run it works on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from skerch.jobs.config import Config
from skerch.jobs.config.methods import METHODS
from skerch.jobs.pipeline.task_log import Progress, silent
from skerch.jobs.run_dir import RunDir, StepDir
from skerch.jobs.run_dir.provenance import Provenance, read
from skerch.measurements.team import ALONE, Team


@dataclass(frozen=True)
class Context:
    """Which part of which run a stage works on; step and split are None for the training."""

    run: RunDir
    config: Config
    name: str
    step: int | None = None
    split: str | None = None
    round: int = 1
    tasks: tuple[int, ...] | None = None  # of the measurement array; None means all
    progress: Progress = silent
    team: Team = ALONE
    time_limit: float = math.inf  # seconds, after which the process is likely to be stopped

    @property
    def hessian(self) -> tuple[int, str]:
        """The step and the split, of any stage but the training."""
        assert self.step is not None
        assert self.split is not None
        return self.step, self.split

    @property
    def directory(self) -> StepDir:
        """Where the files of this Hessian lie."""
        return self.run.step(self.name, *self.hessian)

    @property
    def manifest(self) -> Path | None:
        """The first file that says of what the method's files of this Hessian are, if any does."""
        return min(METHODS[self.config.method].manifests_in(self.directory.path), default=None)

    @property
    def provenance(self) -> Provenance | None:
        """Of what the method's files of this Hessian are; None before there are any."""
        return None if self.manifest is None else read(self.manifest)
