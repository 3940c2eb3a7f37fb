"""Many small rounds of measurements in one task, with one operator for all of them.

Each leaves what it leaves as tasks of its own, so that either way goes on where the other ended;
but of the ranges, which together are as large as the array, only the one in use is kept.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace

import torch

from skerch.curvature.operator import LossCurvature
from skerch.decompositions.recoveries import Round
from skerch.jobs.config.start import source_of
from skerch.jobs.stages import layout
from skerch.jobs.stages.choice import operator, require_same
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.judge import is_reached
from skerch.jobs.stages.measure import measure
from skerch.jobs.stages.program import main
from skerch.jobs.stages.range_finder import find_start
from skerch.jobs.stages.sketch import SketchFiles
from skerch.measurements.array import MeasurementArray
from skerch.measurements.range_finder import RangeFile, find_range

HELD = 2**26  # bytes of all columns that are held in memory between two passes over them


def run(context: Context) -> None:
    """Measure what is missing of all rounds that are needed, and leave the last one's range."""
    team, directory, plan = context.team, context.directory, context.config.sketch.each_round()
    rounds = SketchFiles(context).rounds()
    total = sum(each.columns + each.probes for each in rounds)
    arrays: list[MeasurementArray] = []
    op: LossCurvature | None = None
    done = 0
    started = source_of(context.config, *context.hessian) is not None

    def range_file(number: int) -> RangeFile | nullcontext[None]:
        """The range of a round; where it is not there, it is found anew, as are those before."""
        path, before = directory.range(number), arrays[: number - 1]
        if number == 1:
            if not started:
                return nullcontext()
            if not team.one(path.exists):
                find_start(context)
                team.one(lambda: None)  # it is there for all
        elif not team.one(path.exists):
            with range_file(number - 1) as earlier:
                columns, final = rounds[number - 1].columns, number == len(plan)
                find_range(before, path, columns, earlier, final, team)
            team.one(lambda: None)  # it is there for all
            forget(number - 1)
        return RangeFile(path, before)

    def forget(number: int) -> None:
        """Delete a range that is no longer in use, if the round has one; a start always is."""
        if number > 1 and team.writes:
            directory.range(number).unlink(missing_ok=True)

    def lay_out(each: Round, range_file: RangeFile | None) -> None:
        if range_file is None or each.round == 1:
            layout.run(replace(context, round=each.round))
        else:
            layout.lay_out_later(context, each, arrays[0], range_file)

    def progress(measured: int, _: int, unit: str) -> None:
        context.progress(done + measured, total, unit)

    def array(number: int) -> MeasurementArray:
        """The array of a round; its columns are held, as every round reads them, if all are few."""
        found = MeasurementArray(directory.measurements(number))
        if found.manifest.size * total * getattr(torch, found.manifest.dtype).itemsize <= HELD:
            found.hold()
        return found

    with ExitStack() as frozen:
        if started:
            with range_file(1):  # every pass over the columns reads it
                pass
        for each in rounds:
            number = each.round
            there = team.one(lambda: layout.is_laid_out(context, each))  # noqa: B023  at once
            if not there and arrays:
                with range_file(number - 1) as before:
                    if is_reached(context, arrays, before):
                        break
            if not there or team.one(array(number).missing):
                with range_file(number) as test_vectors:
                    if not there:
                        team.one(lambda: lay_out(each, test_vectors))  # noqa: B023
                    arrays.append(array(number))
                    blocks = team.share(arrays[-1].missing)
                    if op is None:
                        op = operator(context)
                        frozen.enter_context(op.frozen())
                        require_same(op, context)
                    if blocks:
                        measure(op, arrays[-1], blocks, test_vectors, progress)
                team.one(lambda: None)  # all have measured
            else:
                arrays.append(array(number))
            done += each.columns + each.probes
            forget(number - 1)
        for number in dict.fromkeys((1, len(arrays))):
            with range_file(number):
                pass


if __name__ == "__main__":
    main("rounds")
