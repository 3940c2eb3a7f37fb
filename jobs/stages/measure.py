"""Fill blocks of a measurement array with Hessian matvecs: the stage that runs in parallel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

from torch import Tensor

from skerch.curvature.operator import LossCurvature
from skerch.jobs.pipeline.task_log import Progress, silent
from skerch.jobs.stages.choice import MeasureError, operator, require_same
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.program import main
from skerch.jobs.stages.sketch import SketchFiles
from skerch.measurements.array import MeasurementArray
from skerch.measurements.manifest import Block
from skerch.measurements.measure import Measurer, NonFiniteError
from skerch.measurements.range_finder import RangeFile


def run(context: Context) -> None:
    """Measure the blocks of `context.tasks` that have no file yet.

    Measurement task t is blocks [t p, (t + 1) p) with p = launcher.blocks_per_task.
    """
    files = SketchFiles(context)
    if not files.needed:
        return
    array = files.array(files.which_round().round)
    wanted = _indices(context, len(array.manifest.blocks()))
    blocks = context.team.share(lambda: array.missing(wanted))
    if not blocks:
        return
    op = operator(context)
    with op.frozen(), files.range_file(context.round) as range_file:
        require_same(op, context)
        measure(op, array, blocks, range_file, context.progress)


def measure(
    op: LossCurvature,
    array: MeasurementArray,
    blocks: Sequence[Block],
    range_file: RangeFile | None,
    progress: Progress = silent,
) -> None:
    """Fill blocks of an array whose test vectors, in a later round, are in the range file."""
    if range_file and range_file.hash != array.manifest.range_hash:
        raise MeasureError(
            f"{array.directory} was laid out for another range.h5; delete {array.directory} "
            "to measure it anew."
        )
    op.compare = array.manifest.round == 1 and blocks[0].index == 0  # once an array
    measurer = Measurer(array.manifest, op.device, range_file.columns if range_file else None)

    def of_block(block: Block) -> dict[str, Tensor]:
        try:
            return measurer.measure(op, block)
        except NonFiniteError as error:
            raise MeasureError(
                f"{error} The loss there is {op.loss()}; a step before training diverged, "
                "or hessian.dtype=float64, may help."
            ) from None

    fill(array, blocks, of_block, progress)


def fill(
    array: MeasurementArray,
    blocks: Sequence[Block],
    of_block: Callable[[Block], dict[str, Tensor]],
    progress: Progress = silent,
) -> None:
    """Write what `of_block` says of each block, in a thread while it is at the next one.

    All are on disk when this returns. When it raises, each that was begun is on disk or absent.
    """
    total = sum(block.stop - block.start for block in blocks)
    done = 0
    with ThreadPoolExecutor(1) as writer:
        arrays = of_block(blocks[0])
        for block, following in zip_longest(blocks, blocks[1:]):
            write = writer.submit(array.write, block, arrays)
            if following is not None:
                arrays = of_block(following)
            write.result()
            done += block.stop - block.start
            progress(done, total, "columns")


def _indices(context: Context, blocks: int) -> list[int] | None:
    """The blocks of the context's tasks, None for all."""
    if context.tasks is None:
        return None
    p = context.config.launcher.blocks
    if max(context.tasks) * p >= blocks:
        raise MeasureError(
            f"There is no measurement task {max(context.tasks)}: {blocks} blocks in tasks of {p} "
            f"(launcher.blocks_per_task) are tasks 0 to {(blocks - 1) // p}."
        )
    return [index for t in context.tasks for index in range(t * p, min((t + 1) * p, blocks))]


if __name__ == "__main__":
    main("measure")
