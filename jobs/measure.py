"""Fill blocks of a measurement array with Hessian matvecs: the stage that runs in parallel."""

from __future__ import annotations

from skerch.errors import SkerchError
from skerch.jobs.operators import hessian_operator, load_inputs, resolve_device
from skerch.jobs.stage import Context, main
from skerch.measurements.measure import Measurer, NonFiniteError


class MeasureError(SkerchError):
    """A worker that cannot honour the manifest."""


def run(context: Context) -> None:
    """Measure the blocks of `context.tasks` that have no file yet.

    Measurement task t is blocks [t p, (t + 1) p) with p = launcher.blocks_per_task.
    """
    context.round_size(context.round)
    array = context.array(context.round)
    wanted = _indices(context, len(array.manifest.blocks()))
    blocks = context.team.share(lambda: array.missing(wanted))
    if not blocks:
        return
    recorded = array.manifest.provenance
    device = resolve_device(context.config)
    if device.type != recorded["device"]:
        raise MeasureError(
            f"{array.directory} was laid out for {recorded['device']}, and this worker has "
            f"{device.type}; set launcher.device={recorded['device']}, or delete the folder."
        )
    inputs = load_inputs(context)
    op = hessian_operator(
        context.config, inputs, strategy=recorded["strategy"], chunk_size=recorded["chunk_size"]
    )
    with context.range_file(context.round) as range_file:
        if range_file and range_file.hash != array.manifest.range_hash:
            raise MeasureError(
                f"{array.directory} was laid out for another range.h5; delete {array.directory} "
                "to measure it anew."
            )
        measurer = Measurer(array.manifest, device, range_file and range_file.columns)
        total = sum(block.stop - block.start for block in blocks)
        done = 0
        for block in blocks:
            try:
                arrays = measurer.measure(op, block)
            except NonFiniteError as error:
                raise MeasureError(
                    f"{error} The loss there is {op.loss()}; a step before training diverged, "
                    "or hessian.dtype=float64, may help."
                ) from None
            array.write(block, arrays)
            done += block.stop - block.start
            context.progress(done, total, "columns")


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
