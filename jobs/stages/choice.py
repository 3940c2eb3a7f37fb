"""How the products of one Hessian are computed: chosen once, then the same wherever they are.

The choice is made where workers run, as it times the strategies there.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import skerch
from skerch.curvature.checks import fingerprint
from skerch.curvature.gradients import mean_gradient
from skerch.curvature.operator import LossCurvature
from skerch.curvature.strategies import Choice
from skerch.errors import SkerchError
from skerch.jobs import pipeline
from skerch.jobs.config import difference, identity
from skerch.jobs.problems import user_code
from skerch.jobs.run_dir import gradient_file
from skerch.jobs.run_dir.provenance import Provenance
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import Inputs, load_inputs
from skerch.jobs.stages.operator import curvature_operator, resolve_device
from skerch.rounding import rounding


class MeasureError(SkerchError):
    """A worker that cannot compute the products that were chosen."""


def choose(context: Context, columns: int, *, gradient: bool = False) -> tuple[int, Provenance]:
    """N, and the provenance of products that are to be made here, of so many vectors at once.

    With `gradient` that of the mean loss is written, too, by which a mask is.
    """
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
        seen = sibling.provenance
        assert seen is not None
        its = curvature_operator(config, load_inputs(sibling), replace(seen, strategy="loop"))
        with its.frozen():
            require_same(its, sibling)
        chosen = Choice(seen.strategy, seen.chunk_size, seen.memory_format)
    op = curvature_operator(config, inputs, chosen)
    pipeline.method_of(config).check(config, op.shape[0])
    with op.frozen(), user_code("The Hessian cannot be had"):  # as workers have it
        op.verify()
        choice = op.resolve(columns)
        found = fingerprint(op)
        if gradient:
            found_gradient = mean_gradient(op, inputs.data, config.hessian.batch_size)
            gradient_file.write(context.directory.gradient, found_gradient)
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


def operator(context: Context, inputs: Inputs | None = None) -> LossCurvature:
    """The operator that was chosen for a context's Hessian, on this worker's device."""
    recorded, device = context.provenance, resolve_device(context.config)
    assert recorded is not None
    if device.type != recorded.device:
        raise MeasureError(
            f"{_laid_out(context)} was laid out for {recorded.device}, and this worker has "
            f"{device.type}; set launcher.device={recorded.device}, or delete the folder."
        )
    return curvature_operator(context.config, inputs or load_inputs(context), recorded)


def require_same(op: LossCurvature, context: Context) -> None:
    """Refuse an operator that is not the one which was chosen for a context's Hessian."""
    recorded = context.provenance
    assert recorded is not None
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
            f"{_laid_out(context)} was laid out for another loss: {', '.join(changes)}. The "
            f"problem's code has changed since{f', or the program ({other})' if other else ''}; "
            f"take the old code back, or delete {context.run.method(context.name)} to measure all "
            "anew, or set another name."
        )


def _laid_out(context: Context) -> Path:
    """The folder whose files say what was chosen."""
    assert context.manifest is not None
    return context.manifest.parent


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
