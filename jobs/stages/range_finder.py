"""Before a round: an orthonormal basis of the range that the earlier ones found, or of a start."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from skerch.jobs.config import ConfigError
from skerch.jobs.config.start import source_of
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.judge import is_reached
from skerch.jobs.stages.program import main
from skerch.jobs.stages.sketch import SketchFiles
from skerch.measurements.range_finder import find_range
from skerch.measurements.start import write_start


def run(context: Context) -> None:
    """Write range.h5 of `context.round`, whose columns are that round's test vectors.

    The one before is no longer in use then: all ranges together are as large as the array. Where
    the rounds before have reached the target, that is recorded instead.
    """
    number = context.round
    if not SketchFiles(context).needed:
        return
    if number < 2:
        find_start(context)
        return
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


def find_start(context: Context) -> None:
    """Write range.h5 of round 1, whose first columns are another Hessian's eigenvectors."""
    config = context.config
    source = source_of(config, *context.hessian)
    if source is None:
        raise ConfigError(
            "--round 1 has random test vectors, unless sketch.start is set; the first that has a "
            "range is 2."
        )
    step, split = source
    with SketchFiles(replace(context, step=step, split=split)).eigh() as file:
        W = file.eigenvectors

        def rows(start: int, stop: int) -> Tensor:
            slab = torch.empty(stop - start, W.shape[1], dtype=W.dtype, device="cpu")
            W.read_into(slab, start)
            return slab

        write_start(
            context.directory.range(1),
            rows,
            W.shape[1],
            W.shape[0],
            config.sketch.each_round()[0].columns,
            W.dtype,
            config.sketch.seed,
            config.sketch.block_size,
            context.team,
        )


if __name__ == "__main__":
    main("range_finder")
