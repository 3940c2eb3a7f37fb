"""Lay out a round's measurement array: everything that decides its bits, written once.

Runs where the measure stage runs, as it times the matvec strategies there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from skerch.decompositions.recoveries import Round
from skerch.jobs.config import Config
from skerch.jobs.stages.choice import MeasureError, choose
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import in_mode, load_inputs
from skerch.jobs.stages.operator import curvature_operator
from skerch.jobs.stages.program import main
from skerch.jobs.stages.sketch import SketchFiles
from skerch.jobs.training.session import initial_model
from skerch.measurements.array import BlockError, MeasurementArray
from skerch.measurements.manifest import Manifest, ManifestError, manifest_path
from skerch.measurements.range_finder import RangeFile


def run(context: Context) -> None:
    """Write the manifest of `context.round`, unless there is one already or blocks that hold it.

    A later round takes over the choices of the first one.
    """
    files = SketchFiles(context)
    if not files.needed:
        return
    each = files.which_round()
    if is_laid_out(context, each):
        return
    with files.range_file(each.round) as range_file:
        if each.round == 1:
            sketch = context.config.sketch
            N, provenance = choose(context, min(sketch.block_size, sketch.inner), gradient=True)
            if provenance.fingerprint and not provenance.fingerprint["‖Hv‖"]:
                _refuse_diverged(context)
            range_hash = range_file.hash if range_file else None
            try:
                lay_out(context, each, N, vars(provenance), range_hash)
            except (ManifestError, BlockError):
                if not is_laid_out(context, each):  # by a copy of this task that was faster
                    raise
            return
        assert range_file is not None
        lay_out_later(context, each, files.array(1), range_file)


def _refuse_diverged(context: Context) -> None:
    """Refuse a zero Hessian whose loss is above the initial one: outputs are saturated."""
    config, now = context.config, load_inputs(context)
    if config.training.checkpoints is not None:
        return
    initial = in_mode(initial_model(now.problem, config.training.seed), config.hessian)
    begin, end = (
        curvature_operator(config, inputs).loss() for inputs in (replace(now, model=initial), now)
    )
    if end > begin:
        raise MeasureError(
            f"The training has diverged: at step {context.step} the {context.split} loss is "
            f"{end:.6g}, from {begin:.6g}, and its Hessian is zero. Lower training.lr (now "
            f"{config.training.lr}), or record an earlier step."
        )


def is_laid_out(context: Context, each: Round) -> bool:
    """Whether a round has a manifest, which is written again where blocks alone hold it."""
    directory = context.directory.measurements(each.round)
    if manifest_path(directory).exists():
        MeasurementArray(directory)
        return True
    return MeasurementArray.restore(directory)


def lay_out_later(
    context: Context, each: Round, first: MeasurementArray, range_file: RangeFile
) -> None:
    """Lay out a round whose test vectors are in the range file, by the choices of the first."""
    lay_out(context, each, first.manifest.size, first.manifest.provenance, range_file.hash)


def lay_out(
    context: Context,
    each: Round,
    N: int,
    provenance: Mapping[str, Any],
    range_hash: str | None = None,
) -> MeasurementArray:
    """Write the manifest of a round of N rows, and the view of it."""
    manifest = replace(
        array_manifest(context.config, each, N), range_hash=range_hash, provenance=provenance
    )
    return MeasurementArray.create(context.directory.measurements(each.round), manifest)


def array_manifest(config: Config, each: Round, N: int) -> Manifest:
    """What a config alone says of a round's array, of a Hessian of N rows."""
    sketch = config.sketch
    return Manifest(
        size=N,
        dtype=config.hessian.dtype,
        block_size=sketch.block_size,
        sketch=sketch.kind,
        seed=sketch.seed,
        **asdict(each),
    )


if __name__ == "__main__":
    main("layout")
