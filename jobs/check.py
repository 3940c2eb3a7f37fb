"""Is a model fit for sketching: a finite, deterministic loss with a symmetric Hessian product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from rich.console import Console

from skerch.curvature.hessian import HessianOperator
from skerch.errors import SkerchError
from skerch.jobs.checkpoints import files_of
from skerch.jobs.config import Config
from skerch.jobs.datapoints import hessian_batch
from skerch.jobs.operators import Inputs, hessian_operator, load_inputs
from skerch.jobs.problems import load_data, load_problem, user_code
from skerch.jobs.recorded import describe
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.stage import Context
from skerch.jobs.state_dicts import load_into
from skerch.jobs.train import initial_model
from skerch.randomness import stream

SYMMETRY = {torch.float32: 1e-4, torch.float64: 1e-10}


class CheckError(SkerchError):
    """A model that a Hessian cannot be measured of."""


def print_check(config: Config) -> bool:
    """Print each finding on the config's model; true if it is fit."""
    output = Console()
    fit, inputs = True, sample_inputs(config)
    output.print(f"of    {inputs.origin}", markup=False, highlight=False, soft_wrap=True)
    for passed, finding in findings(hessian_operator(config, inputs)):
        fit = fit and passed
        output.print("[green]ok[/green]    " if passed else "[red]unfit[/red] ", end="")
        output.print(finding, markup=False, highlight=False, soft_wrap=True)
    return fit


def findings(op: HessianOperator) -> Iterator[tuple[bool, str]]:
    """Whether each property holds, and a sentence on it."""
    try:
        with user_code("The loss cannot be computed"):
            check_loss(op)
    except CheckError as error:
        yield False, str(error)
        return
    yield True, f"the loss is {op.loss():.6g}, the same twice, and leaves no trace in the model"
    generator = stream(0, "synthetic", 0)
    X = torch.from_numpy(generator.standard_normal((op.shape[0], 2))).to(op.device, op.dtype)
    Y = op @ X
    finite = bool(torch.isfinite(Y).all())
    yield finite, "Hessian products are finite" if finite else "a Hessian product is not finite"
    if not finite:
        return
    products = (X.T @ Y).double()
    norms = torch.linalg.norm(X.double(), dim=0) * torch.linalg.norm(Y.double(), dim=0)
    difference = float((products[0, 1] - products[1, 0]).abs() / norms.max().clamp(min=1e-300))
    limit = SYMMETRY[op.dtype]
    relation = "within" if difference <= limit else "above"
    yield (
        difference <= limit,
        f"|uᵀHv - vᵀHu| is {difference:.1e} ‖u‖‖Hv‖, {relation} {limit:.0e} for {op.dtype}",
    )
    zero = int((Y == 0).all(dim=1).sum())
    note = f", {zero:,} of them with a zero row in the Hessian" if zero else ""
    strategy = op.resolve(64).strategy
    yield zero < op.shape[0], f"{op.shape[0]:,} parameters{note}; strategy {strategy}"


def check_loss(op: HessianOperator) -> None:
    """Raise CheckError unless the loss is finite, deterministic, and without side effects."""
    before = {name: buffer.clone() for name, buffer in op.model.named_buffers()}
    first, second = op.loss(), op.loss()
    if first != second and not (first != first and second != second):
        raise CheckError(
            f"The loss of the same parameters and data is {first!r} and then {second!r}; switch "
            "off dropout and other randomness in eval mode."
        )
    if not torch.isfinite(torch.tensor(first)):
        raise CheckError(
            f"The loss is {first}; check the data and the learning rate, or take an earlier step."
        )
    for name, buffer in op.model.named_buffers():
        if not torch.equal(buffer, before[name]):
            raise CheckError(
                f"The forward pass changes the buffer {name}; batch norm and the like must use "
                "their running statistics in eval mode."
            )


def sample_inputs(config: Config) -> Inputs:
    """The network at the last of the steps to record, or else the initial one; `origin` says which.

    It is taken from the run as far as that is trained, or from `training.checkpoints`.
    """
    run, split = RunDir(config.run_dir), config.hessian.splits[-1]
    training, steps = config.training, config.training.record_steps or []
    if run.parameters.exists() and run.hessian_data.exists():
        there = describe(run)
        known = [step for step in steps if step in there["steps"] and split in there["datapoints"]]
        if known and (training.checkpoints is None or known[-1] == steps[-1]):
            recorded = load_inputs(Context(run, config, method_name(config), known[-1], split))
            return replace(recorded, origin=f"recorded step {known[-1]} of {run.path}")
    problem = load_problem(config.problem, config.problem_path)
    model, origin = initial_model(problem, training.seed).eval(), "the initial network"
    if training.checkpoints is not None:
        ((step, path),) = files_of(training, steps[-1:]).items()
        load_into(model, path)
        origin = f"parameters of {path}, step {step}"
    data = hessian_batch(load_data(problem, split), split, config.hessian)
    return Inputs(problem, model, data, origin=origin)
