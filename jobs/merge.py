"""Consolidate the blocks of all rounds into the merged file: the summary and the columns."""

from __future__ import annotations

from contextlib import ExitStack

from skerch.hdf5 import verify
from skerch.jobs.stage import Context, main
from skerch.measurements.merge import merge
from skerch.measurements.range_finder import RangeFile


def run(context: Context) -> None:
    """Write merged.h5; with keep_blocks=false remove the blocks once it is verified."""
    config, path = context.config, context.directory.merged
    arrays = [context.array(number) for number in range(1, config.sketch.rounds + 1)]
    with ExitStack() as stack:
        range_file = None
        if len(arrays) == 2:
            range_file = stack.enter_context(RangeFile(context.directory.range, arrays[0]))
        merge(
            arrays,
            path,
            range_file=range_file,
            consolidate=config.consolidate,
            progress=lambda done, total: context.progress(done, total, "rows"),
        )
    if not config.keep_blocks:
        verify(path)
        for array in arrays:
            array.remove_blocks()
        context.directory.range.unlink(missing_ok=True)


if __name__ == "__main__":
    main("merge")
