"""Between two rounds: an orthonormal basis of the range that the earlier one found."""

from __future__ import annotations

from skerch.jobs.config import ConfigError
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.judge import is_reached
from skerch.jobs.stages.program import main
from skerch.jobs.stages.sketch import SketchFiles
from skerch.measurements.range_finder import find_range


def run(context: Context) -> None:
    """Write range.h5 of `context.round`, whose columns are that round's test vectors.

    The one before is no longer in use then: all ranges together are as large as the array. Where
    the rounds before have reached the target, that is recorded instead.
    """
    number = context.round
    if number < 2:
        raise ConfigError("--round 1 has random test vectors; the first that has a range is 2.")
    files = SketchFiles(context)
    columns, path = files.which_round().columns, context.directory.range(number)
    final = number == len(context.config.sketch.each_round())
    arrays = files.arrays(number - 1)
    with files.range_file(number - 1) as before:
        if is_reached(context, arrays, before):
            return
        find_range(arrays, path, columns, before, final, context.team)
    if number > 2 and context.team.writes:
        context.directory.range(number - 1).unlink(missing_ok=True)


if __name__ == "__main__":
    main("range_finder")
