"""What Kronecker-factored methods take, from the shapes of the network's layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from rich.filesize import decimal

from skerch.curvature.parameters import select_parameters
from skerch.jobs import problems
from skerch.jobs.commands.kronecker.calibrate import seconds
from skerch.jobs.commands.krylov.plan import SMALL
from skerch.jobs.commands.plan import (
    Plan,
    Row,
    count_hessians,
    duration,
    memory_warnings,
    python_memory,
)
from skerch.jobs.commands.seigh.disk import training_disk
from skerch.jobs.config import Config
from skerch.jobs.pipeline import Task
from skerch.jobs.pipeline.kronecker import count_passes, is_corrected
from skerch.jobs.stages.assess import count_probes
from skerch.kronecker.eigenbasis import pays
from skerch.kronecker.layers import Layer, Layers, find_layers
from skerch.kronecker.methods import make
from skerch.kronecker.methods.base import Tensors, zero_factors
from skerch.kronecker.sums import MOST_AT_ONCE

META = torch.device("meta")
DOUBLE = 8  # bytes of what is decomposed


@dataclass(frozen=True)
class Bytes:
    """Of the tensors of some layers."""

    partial: int  # a partial sum of a pass, the largest one
    factors: int
    eigenbasis: int
    eigenvalues: int  # if they are corrected
    corrections: int  # a partial sum of them


def calibrate(config: Config) -> tuple[dict[str, float], float]:
    """The seconds of stages here, and of a part."""
    times = seconds(config)
    return times, times["factors"]


def plan(config: Config, N: int, tasks: list[Task], times: dict[str, float] | None) -> Plan:
    """What the tasks of a config take."""
    asked, hessians = config.kronecker, count_hessians(config)
    found = layers_of(config)
    whole = bytes_of(config, found.covered)
    parts = asked.count_parts(config.hessian.datapoints)
    rounds = count_passes(config) + is_corrected(config)
    examples = config.hessian.datapoints * rounds * asked.partitions
    scores = {"type2": "one an output", "mc": f"{asked.samples} each", "empirical": "one each"}
    kept = whole.factors + whole.eigenbasis + whole.eigenvalues + SMALL
    peak = kept + parts * max(whole.partial, whole.corrections)
    probes = count_probes(len(found.covered))
    products = probes * len(found.covered)
    work: list[Row] = [
        ("layers", f"{len(found.covered):,}", ""),
        ("partial sums", f"{parts * asked.partitions * rounds:,}", ""),
        ("examples forward", f"{examples:,}", f"{examples * hessians:,}"),
        (f"examples backward, {scores[asked.fisher]}", f"{examples:,}", f"{examples * hessians:,}"),
        (f"products to assess, {probes} a layer", f"{products:,}", f"{products * hessians:,}"),
    ]
    rest: list[Row] = [
        ("disk: factors", decimal(whole.factors), ""),
        ("disk: eigenbasis and eigenvalues", decimal(whole.eigenbasis + whole.eigenvalues), ""),
        ("disk: partial sums of a pass", decimal(parts * whole.partial), ""),
        ("disk: at most", decimal(peak), ""),
        ("disk: what stays", decimal(kept), decimal(training_disk(config, N) + hessians * kept)),
    ]
    needs = memory(config, found, N)
    told = ", ".join(f"{stage} {decimal(need)}" for stage, need in needs.items())
    notes = [
        f"memory   {told}; besides the network, its activations, and the inputs and slopes at "
        f"positions that share weights; and {decimal(python_memory())} for Python with PyTorch, as "
        "this process.",
        *memory_warnings(config, needs),
        *(f"uncovered  {name}: {reason}" for name, reason in found.uncovered.items()),
    ]
    if times:
        of_part = times["factors"] * count_passes(config) + times.get("correction", 0.0)
        all_of = parts * of_part + times["eigenbasis"]
        rest += [
            (f"time: {stage}{'' if stage == 'eigenbasis' else ', a part'}", duration(each), "")
            for stage, each in times.items()
        ]
        rest.append(("time: all of these", duration(all_of), duration(hessians * all_of)))
        notes.append(
            "time     of a part timed here, one task after the other; training, assess, queue and "
            "the start of Python are not in it."
        )
    return Plan(work, rest, notes)


def layers_of(config: Config) -> Layers:
    """The layers of the problem's network, as far as that alone tells."""
    problem = problems.load_problem(config.problem, config.problem_path)
    model = problems.build_model(problem)
    selected = select_parameters(model, config.hessian.param_filter)
    return find_layers(model, selected, include_bias=config.kronecker.include_bias)


def bytes_of(config: Config, layers: list[Layer]) -> Bytes:
    """The bytes of tensors of these layers."""
    dtype = getattr(torch, config.hessian.dtype)
    partial = factors = eigenbasis = values = 0
    for layer in layers:
        if config.method == "autocorrelation":
            method = make("autocorrelation", project=config.kronecker.project)
            sums = method.zeros(layer, dtype, META)
            size, rank = math.prod(layer.shape), len(sums["C"])
            own = sums
            eigenbasis += DOUBLE * (size * rank + rank + (rank < size))
        else:
            numbers = (1, 2) if config.method == "nearest" else (0,)
            makes = [make(config.method, **({"number": n} if n else {})) for n in numbers]
            sums = max((each.zeros(layer, dtype, META) for each in makes), key=_size)
            own = zero_factors(layer, dtype, META)
            widths = [_basis(config, *factor.shape[1:]) for factor in own.values()]
            if config.method == "nearest":
                norms = layer.shape[0], config.kronecker.iterations
                own["norms"] = torch.zeros(norms, dtype=dtype, device=META)
            eigenbasis += DOUBLE * layer.shape[0] * sum(v + r for v, r in widths)
            directions = math.prod(r for _, r in widths)
            values += is_corrected(config) * layer.shape[0] * directions * dtype.itemsize
        partial += _size(sums)
        factors += _size(own)
    return Bytes(partial, factors, eigenbasis, values, values)


def memory(config: Config, found: Layers, N: int) -> dict[str, int]:
    """The bytes that a task of each stage holds, by stage."""
    item, asked = getattr(torch, config.hessian.dtype).itemsize, config.kronecker
    each = [bytes_of(config, layers) for layers in found.partition(asked.partitions)]
    batch = min(config.hessian.batch_size or asked.part_size, asked.part_size)
    gradients = max((math.prod(layer.shape) for layer in found.covered), default=0)
    if config.method in ("kfac", "ekfac", "tkfac"):
        gradients = max((sum(layer.shape[1:]) for layer in found.covered), default=0)
    most = {"type2": MOST_AT_ONCE, "mc": asked.samples, "empirical": 1}  # scores at once
    scores = min(MOST_AT_ONCE, most[asked.fisher])
    of_batch = batch * scores * gradients * item
    widest = max((max(layer.shape[1:]) for layer in found.covered), default=0)
    if config.method == "autocorrelation":
        widest = min(asked.project or gradients, gradients)
    whole, probes = bytes_of(config, found.covered), count_probes(len(found.covered))
    needs = {
        "factors": max(b.partial for b in each) + of_batch,
        "factors_merge": max(2 * b.partial + b.factors for b in each),
        "eigenbasis": max(b.factors + b.eigenbasis for b in each) + 4 * DOUBLE * widest**2,
        "assess": whole.eigenbasis + whole.eigenvalues + 6 * probes * N * DOUBLE,
    }
    if is_corrected(config):
        held = max(2 * b.eigenbasis + b.corrections for b in each)
        needs |= {"correction": held + of_batch}
        needs |= {"correction_merge": max(b.eigenbasis + 3 * b.corrections for b in each)}
    return needs


def _size(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _basis(config: Config, size: int, columns: int | None = None) -> tuple[int, int]:
    """Entries of a factor's eigenvectors, and its directions; a diagonal has unit vectors.

    With a tolerance they are as many as that takes, and all at most.
    """
    rank = config.kronecker.rank
    if columns is None:
        return 0, size
    if rank and pays(rank, size):
        return size * rank, rank + 1
    return size * size, size
