"""Lay out a round's measurement array: everything that decides its bits, written once.

Runs where the measure stage runs, as it times the matvec strategies there.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import skerch
from skerch.curvature.checks import fingerprint
from skerch.curvature.strategies import Choice
from skerch.decompositions.recoveries import Round, check_dimension
from skerch.jobs.config import Config, difference, identity
from skerch.jobs.problems import user_code
from skerch.jobs.run_dir.provenance import Provenance
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs
from skerch.jobs.stages.measure import require_same
from skerch.jobs.stages.operator import curvature_operator, resolve_device
from skerch.jobs.stages.program import main
from skerch.jobs.stages.sketch import SketchFiles
from skerch.measurements.array import MeasurementArray
from skerch.measurements.manifest import Manifest, manifest_path
from skerch.measurements.range_finder import RangeFile


def run(context: Context) -> None:
    """Write the manifest of `context.round`, unless there is one already or blocks that hold it.

    A later round takes over the choices of the first one.
    """
    files = SketchFiles(context)
    each = files.which_round()
    if is_laid_out(context, each):
        return
    with files.range_file(each.round) as range_file:
        if each.round == 1:
            N, provenance = _choose(context)
            range_hash = range_file.hash if range_file else None
            lay_out(context, each, N, vars(provenance), range_hash)
            return
        assert range_file is not None
        lay_out_later(context, each, files.array(1), range_file)


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


def _choose(context: Context) -> tuple[int, Provenance]:
    """N, and the provenance of a Hessian's measurements that are to be made here."""
    config = context.config
    inputs = load_inputs(context)
    device = resolve_device(config)
    kind: dict[str, Any] = {
        "identity": identity(config, "method"),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "processor": _processor(device),
    }
    chosen = None
    if sibling := _laid_out_before(context, kind):
        array = SketchFiles(sibling).any_array()
        seen = Provenance.of(array.manifest)
        its = curvature_operator(config, load_inputs(sibling), replace(seen, strategy="loop"))
        with its.frozen():
            require_same(its, array)
        chosen = Choice(seen.strategy, seen.chunk_size, seen.memory_format)
    op = curvature_operator(config, inputs, chosen)
    sketch = config.sketch
    check_dimension(op.shape[0], sketch.outer, sketch.inner, sketch.target is not None)
    with op.frozen(), user_code("The Hessian cannot be had"):  # as workers have it
        op.verify()
        choice = op.resolve(min(sketch.block_size, sketch.inner))
        found = fingerprint(op)
    step, split = context.hessian
    return op.shape[0], Provenance(
        **kind,
        step=step,
        split=split,
        **vars(choice),
        fingerprint=found,
        versions={"skerch": skerch.__version__, "torch": str(torch.__version__)},
        parameters_hash=inputs.parameters_hash,
        datapoints_hash=inputs.datapoints_hash,
    )


def _laid_out_before(context: Context, kind: dict[str, Any]) -> Context | None:
    """Another Hessian of this run, laid out on this kind of machine; None for the first."""
    for step, split in context.run.hessians(context.config):
        sibling = replace(context, step=step, split=split, round=1)
        found = sibling.provenance
        if found is None or difference(found.identity, kind["identity"]):
            continue
        if found == replace(found, **kind | {"identity": found.identity}):
            return sibling
    return None


def _processor(device: torch.device) -> str:
    """The model of what computes, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = (
        cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        if cpuinfo.exists()
        else []
    )
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


if __name__ == "__main__":
    main("layout")
