"""Fill blocks of a measurement array with Hessian matvecs: the stage that runs in parallel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import torch
from torch import Tensor

import skerch
from skerch.curvature.checks import fingerprint
from skerch.curvature.operator import LossCurvature
from skerch.errors import SkerchError
from skerch.jobs.pipeline.task_log import Progress, silent
from skerch.jobs.run_dir.provenance import Provenance
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs
from skerch.jobs.stages.operator import curvature_operator, resolve_device
from skerch.jobs.stages.program import main
from skerch.jobs.stages.sketch import SketchFiles
from skerch.measurements.array import MeasurementArray
from skerch.measurements.manifest import Block
from skerch.measurements.measure import Measurer, NonFiniteError
from skerch.measurements.range_finder import RangeFile
from skerch.rounding import rounding


class MeasureError(SkerchError):
    """A worker that cannot honour the manifest."""


def run(context: Context) -> None:
    """Measure the blocks of `context.tasks` that have no file yet.

    Measurement task t is blocks [t p, (t + 1) p) with p = launcher.blocks_per_task.
    """
    files = SketchFiles(context)
    array = files.array(files.which_round().round)
    wanted = _indices(context, len(array.manifest.blocks()))
    blocks = context.team.share(lambda: array.missing(wanted))
    if not blocks:
        return
    op = operator(context, array)
    with op.frozen(), files.range_file(context.round) as range_file:
        require_same(op, array)
        measure(op, array, blocks, range_file, context.progress)


def operator(context: Context, array: MeasurementArray) -> LossCurvature:
    """The operator that an array was laid out for, on this worker's device."""
    recorded = Provenance.of(array.manifest)
    device = resolve_device(context.config)
    if device.type != recorded.device:
        raise MeasureError(
            f"{array.directory} was laid out for {recorded.device}, and this worker has "
            f"{device.type}; set launcher.device={recorded.device}, or delete the folder."
        )
    return curvature_operator(context.config, load_inputs(context), recorded)


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


def require_same(op: LossCurvature, array: MeasurementArray) -> None:
    """Refuse an operator that is not the one which the array was laid out for."""
    recorded = Provenance.of(array.manifest)
    laid_out = recorded.fingerprint
    if laid_out is None:
        return
    found = fingerprint(op)
    scales = {name: abs(value) for name, value in laid_out.items()}
    scales["vᵀHv"] = scales["‖Hv‖"]  # v has unit norm
    changes = [
        f"{name} was {value:.6g} and is {found[name]:.6g}"
        for name, value in laid_out.items()
        if not abs(found[name] - value) <= rounding(op.precision) * scales[name]
    ]
    if changes:
        ours = {"skerch": skerch.__version__, "torch": str(torch.__version__)}
        versions = recorded.versions
        other = ", ".join(f"{k} {versions[k]} -> {v}" for k, v in ours.items() if versions[k] != v)
        raise MeasureError(
            f"{array.directory} was laid out for another loss: {', '.join(changes)}. The problem's "
            f"code has changed since{f', or the program ({other})' if other else ''}; take the old "
            f"code back, or delete {array.directory.parents[2]} to measure all anew, or set "
            "another name."
        )


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
    p = context.config.launcher.blocks_per_task
    if max(context.tasks) * p >= blocks:
        raise MeasureError(
            f"There is no measurement task {max(context.tasks)}: {blocks} blocks in tasks of {p} "
            f"(launcher.blocks_per_task) are tasks 0 to {(blocks - 1) // p}."
        )
    return [index for t in context.tasks for index in range(t * p, min((t + 1) * p, blocks))]


if __name__ == "__main__":
    main("measure")
