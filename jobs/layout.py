"""Lay out a round's measurement array: everything that decides its bits, written once.

Runs where the measure stage runs, as it times the matvec strategies there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from skerch.decompositions import recovery as recoveries
from skerch.decompositions.recovery import RoundSize
from skerch.jobs.check import check_loss
from skerch.jobs.config import Config, identity
from skerch.jobs.operators import hessian_operator, load_inputs
from skerch.jobs.stage import Context, main
from skerch.measurements.array import MeasurementArray
from skerch.measurements.manifest import Manifest, manifest_path


def run(context: Context) -> None:
    """Write the manifest of `context.round`, unless there is one already or blocks that hold it.

    A later round takes over the choices of the first one.
    """
    directory = context.directory.measurements(context.round)
    if manifest_path(directory).exists() or MeasurementArray.restore(directory):
        MeasurementArray(directory)
        return
    range_hash = None
    if context.round == 1:
        N, provenance = _choose(context)
    else:
        first = context.array(1)
        N, provenance = first.manifest.size, dict(first.manifest.provenance)
        with context.range_file(context.round) as range_file:
            range_hash = range_file.hash
    manifest = replace(
        array_manifest(context.config, context.round_size(context.round), N),
        round=context.round,
        range_hash=range_hash,
        provenance=provenance,
    )
    MeasurementArray.create(directory, manifest)


def array_manifest(config: Config, size: RoundSize, N: int) -> Manifest:
    """What a config alone says of an array of this size, of a Hessian of N rows."""
    sketch = config.sketch
    return Manifest(
        size=N,
        dtype=config.hessian.dtype,
        columns=size.columns,
        stored=size.stored,
        probes=size.probes,
        block_size=sketch.block_size,
        sketch=sketch.kind,
        seed=sketch.seed,
        compresses=recoveries.RECOVERIES[sketch.recovery].compresses,
    )


def _choose(context: Context) -> tuple[int, dict[str, Any]]:
    """N, and what else decides a column's bits: inputs, matvec strategy, threads, device."""
    config = context.config
    inputs = load_inputs(context)
    hashes = inputs.hashes
    op = hessian_operator(config, inputs)
    N = op.shape[0]
    recoveries.check_size(N, config.sketch.inner)
    check_loss(op)
    with op.frozen():  # as workers have it
        choice = op.resolve(min(config.sketch.block_size, config.sketch.inner))
    provenance = {
        "identity": identity(config, "method"),
        "step": context.step,
        "split": context.split,
        "strategy": choice.strategy,
        "chunk_size": choice.chunk_size,
        "memory_format": choice.memory_format,
        "threads": torch.get_num_threads(),
        "device": op.device.type,
    }
    return N, provenance | hashes


if __name__ == "__main__":
    main("layout")
