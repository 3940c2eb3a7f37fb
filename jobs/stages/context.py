"""What a stage gets: which part of which run it works on, and the files of that part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from skerch.errors import SkerchError
from skerch.jobs.config import Config, ConfigError
from skerch.jobs.pipeline.task_log import Progress, silent
from skerch.jobs.run_dir import RunDir, StepDir, command
from skerch.measurements.team import ALONE, Team

if TYPE_CHECKING:
    from skerch.decompositions.eigh_file import EighFile
    from skerch.decompositions.recoveries import Round
    from skerch.jobs.run_dir.exact_file import ExactFile
    from skerch.measurements.array import MeasurementArray
    from skerch.measurements.merge import MergedArray
    from skerch.measurements.range_finder import RangeFile

Bound = TypeVar("Bound", "MergedArray", "EighFile", "ExactFile")


class StageError(SkerchError):
    """Results that a stage cannot take, as they are of something else."""


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

    def which_round(self) -> Round:
        """The round of measurements that the stage works on."""
        rounds = self.config.sketch.each_round()
        if not 1 <= self.round <= len(rounds):
            raise ConfigError(f"sketch.rounds is {len(rounds)}, so there is no round {self.round}.")
        return rounds[self.round - 1]

    def array(self, round_number: int) -> MeasurementArray:
        """The measurement array of a round."""
        from skerch.measurements.array import MeasurementArray

        return MeasurementArray(self.directory.measurements(round_number))

    def arrays(self, rounds: int | None = None) -> list[MeasurementArray]:
        """The measurement arrays of the first rounds, by default of all."""
        count = self.config.sketch.rounds if rounds is None else rounds
        return [self.array(number) for number in range(1, count + 1)]

    @contextmanager
    def range_file(self, number: int) -> Iterator[RangeFile | None]:
        """The range file of a round, open; the first round has none."""
        from skerch.measurements.range_finder import RangeFile

        if number == 1:
            yield None
            return
        with RangeFile(self.directory.range(number), self.arrays(number - 1)) as file:
            yield file

    def merged(self) -> MergedArray:
        """The merged file, refused where it is of other measurements than are there."""
        from skerch.measurements.merge import MergedArray

        return self._of_these(self.directory.merged, MergedArray)

    def eigh(self) -> EighFile:
        """The eigenpairs, refused where they are of other measurements than are there."""
        from skerch.decompositions.eigh_file import EighFile

        return self._of_these(self.directory.eigh, EighFile)

    def exact(self) -> ExactFile:
        """The exact eigenpairs, refused where they were compared with other measurements."""
        from skerch.jobs.run_dir.exact_file import ExactFile

        return self._of_these(self.directory.exact, ExactFile)

    def _of_these(self, path: Path, reader: Callable[[Path], Bound]) -> Bound:
        if not path.exists():
            raise StageError(f"{path} is missing; see: {command('status', self.run.path)}")
        file = reader(path)
        if not self.directory.measured(file.manifests):
            with file:
                raise StageError(
                    f"{path} is of other measurements than are there now; delete it and run again."
                )
        return file
