"""Consolidate the blocks of all rounds into the merged file: the summary and the columns."""

from __future__ import annotations

from skerch.hdf5 import verify
from skerch.jobs.stage import Context, main
from skerch.measurements.merge import merge
from skerch.measurements.range_finder import RangeFile


def run(context: Context) -> None:
    """Write merged.h5; with keep_blocks=false remove the blocks once it is verified."""
    config, path = context.config, context.directory.merged
    arrays = [context.array(number) for number in range(1, config.sketch.rounds + 1)]
    range_map = None
    if config.sketch.rounds == 2:
        with RangeFile(context.directory.range) as range_file:
            range_map = range_file.map
    merge(
        arrays,
        path,
        range_map=range_map,
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
