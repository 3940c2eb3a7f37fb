"""Consolidate the blocks of all rounds into the merged file: the summary and the columns."""

from __future__ import annotations

from skerch.hdf5 import verify
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.program import main
from skerch.jobs.stages.sketch import SketchFiles
from skerch.measurements.merge import merge


def run(context: Context) -> None:
    """Write merged.h5; with keep_blocks=false remove the blocks once it is verified."""
    config, path = context.config, context.directory.merged
    files = SketchFiles(context)
    arrays = files.arrays()
    if context.team.writes:
        for number in range(2, len(arrays)):  # left by a kill just after the next one was found
            context.directory.range(number).unlink(missing_ok=True)
    with files.range_file(len(arrays)) as range_file:
        merge(
            arrays,
            path,
            range_file=range_file,
            consolidate=config.consolidate,
            progress=lambda done, total: context.progress(done, total, "rows"),
            team=context.team,
        )
    context.team.one(lambda: None)  # from here nobody reads blocks
    if context.team.writes and not config.keep_blocks:
        verify(path)
        for number, array in enumerate(arrays, start=1):
            array.remove_blocks()
            context.directory.range(number).unlink(missing_ok=True)


if __name__ == "__main__":
    main("merge")
