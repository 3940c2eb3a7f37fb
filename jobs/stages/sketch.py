"""The files of one Hessian's sketch: arrays, ranges, the merged summary, eigenpairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from skerch.errors import SkerchError
from skerch.jobs.config import ConfigError
from skerch.jobs.config.start import source_of
from skerch.jobs.run_dir import command, rounds_file
from skerch.jobs.stages.context import Context

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
class SketchFiles:
    """Those of the Hessian that a context is about."""

    context: Context

    def which_round(self) -> Round:
        """The round of measurements that the stage works on."""
        rounds, number = self.context.config.sketch.each_round(), self.context.round
        if not 1 <= number <= len(rounds):
            raise ConfigError(f"sketch.rounds is {len(rounds)}, so there is no round {number}.")
        return rounds[number - 1]

    def rounds(self) -> list[Round]:
        """The rounds that are needed; all members of the team see the same."""
        context = self.context
        return context.team.one(
            lambda: rounds_file.rounds(context.directory, context.config.sketch)
        )

    @property
    def needed(self) -> bool:
        """Whether the context's round is; those after the one that reached the target are not."""
        if self.context.config.sketch.target is None or self.context.round == 1:
            return True
        return self.context.round <= len(self.rounds())

    def array(self, round_number: int) -> MeasurementArray:
        """The measurement array of a round."""
        from skerch.measurements.array import MeasurementArray

        return MeasurementArray(self.context.directory.measurements(round_number))

    def arrays(self, rounds: int | None = None) -> list[MeasurementArray]:
        """The measurement arrays of the first rounds, by default of all that are needed."""
        count = len(self.rounds()) if rounds is None else rounds
        return [self.array(number + 1) for number in range(count)]

    @contextmanager
    def range_file(self, number: int) -> Iterator[RangeFile | None]:
        """The range file of a round, open; the first round has none without a start."""
        from skerch.measurements.range_finder import RangeFile

        if number == 1 and source_of(self.context.config, *self.context.hessian) is None:
            yield None
            return
        path = self.context.directory.range(number)
        with RangeFile(path, self.arrays(number - 1)) as file:
            yield file

    def merged(self) -> MergedArray:
        """The merged file, refused where it is of other measurements than are there."""
        from skerch.measurements.merge import MergedArray

        return self._of_these(self.context.directory.merged, MergedArray)

    def eigh(self) -> EighFile:
        """The eigenpairs, refused where they are of other measurements than are there."""
        from skerch.decompositions.eigh_file import EighFile

        return self._of_these(self.context.directory.eigh, EighFile)

    def exact(self) -> ExactFile:
        """The exact eigenpairs, refused where they were compared with other measurements."""
        from skerch.jobs.run_dir.exact_file import ExactFile

        return self._of_these(self.context.directory.exact, ExactFile)

    def _of_these(self, path: Path, reader: Callable[[Path], Bound]) -> Bound:
        if not path.exists():
            see = command("status", self.context.run.path)
            raise StageError(f"{path} is missing; see: {see}")
        file = reader(path)
        if not self.context.directory.measured(file.manifests):
            with file:
                raise StageError(
                    f"{path} is of other measurements than are there now; delete it and run again."
                )
        return file
