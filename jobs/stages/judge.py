"""Judge the rounds so far against the target, and record what they came to."""

from __future__ import annotations

from skerch.decompositions.solve import Solution, solve
from skerch.decompositions.target import Target, judged
from skerch.jobs.run_dir import rounds_file
from skerch.jobs.stages.context import Context
from skerch.measurements.array import MeasurementArray
from skerch.measurements.merge import summary_of
from skerch.measurements.range_finder import RangeFile
from skerch.measurements.summary import Summary


def is_reached(
    context: Context, arrays: list[MeasurementArray], range_file: RangeFile | None
) -> bool:
    """Whether no round is needed beyond those of `arrays`, of the last of which is `range_file`."""
    sketch = context.config.sketch
    if sketch.target is None:
        return False
    plan, number = [each.columns for each in sketch.each_round()], len(arrays)
    if number not in judged(plan[:-1], sketch.outer):
        return False
    there = context.team.one(lambda: rounds_file.judgements(context.directory, sketch).get(number))
    if there is not None:
        return there.reached
    summary = summary_of(arrays, range_file, context.team)

    def reached() -> bool:
        return judge(context, summary, solve(summary, sketch.recovery, sketch.outer), number)

    return context.team.one(reached)


def judge(context: Context, summary: Summary, solution: Solution, rounds: int) -> bool:
    """Record what the first rounds came to, which have this summary; whether it is the target."""
    sketch = context.config.sketch
    assert sketch.target is not None
    columns = [each.columns for each in sketch.each_round()[:rounds]]
    judgement = Target.of(sketch.target).judge(summary, solution, columns, sketch.outer)
    rounds_file.add(context.directory, sketch, rounds, judgement)
    return judgement.reached
