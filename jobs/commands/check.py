"""Is a model fit for sketching? What the guards find, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from rich.console import Console

from skerch.curvature import checks
from skerch.curvature.checks import CheckError
from skerch.curvature.operator import LossCurvature
from skerch.errors import SkerchError
from skerch.jobs.config import Config
from skerch.jobs.config.checkpoints import files_of
from skerch.jobs.problems import load_data, load_problem, user_code
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.run_dir.training_files import describe
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import Inputs, in_mode, load_inputs
from skerch.jobs.stages.operator import curvature_operator
from skerch.jobs.training.datapoints import hessian_batch
from skerch.jobs.training.session import initial_model
from skerch.jobs.training.state_dicts import load_into
from skerch.randomness import stream


def print_check(config: Config) -> bool:
    """Print each finding on the config's model; true if it is fit."""
    output = Console()
    fit, inputs = True, sample_inputs(config)
    output.print(f"of    {inputs.origin}", markup=False, highlight=False, soft_wrap=True)
    for passed, finding in findings(curvature_operator(config, inputs)):
        fit = fit and passed
        output.print("[green]ok[/green]    " if passed else "[red]unfit[/red] ", end="")
        output.print(finding, markup=False, highlight=False, soft_wrap=True)
    return fit


def findings(op: LossCurvature) -> Iterator[tuple[bool, str]]:
    """Whether each property holds, and a sentence on it; the first, a fixed loss, is for all."""
    op.check = False
    for guard in (*op.checks, _zero_rows):
        try:
            with user_code("The loss cannot be computed"):
                found = True, guard(op)
        except SkerchError as error:
            found = False, str(error)
        yield found
        if guard is checks.same_twice and not found[0]:
            return


def _zero_rows(op: LossCurvature) -> str:
    """How many parameters there are, and by which strategy products would be computed."""
    strategy = op.resolve(64).strategy
    generator = stream(0, "synthetic", 0)
    X = torch.from_numpy(generator.standard_normal((op.shape[0], 2))).to(op.device, op.dtype)
    zero = int((op @ X == 0).all(dim=1).sum())
    if zero == op.shape[0]:
        raise CheckError("The Hessian is zero, as the loss is linear in the parameters.")
    note = f", {zero:,} of them with a zero row in the Hessian" if zero else ""
    return f"{op.shape[0]:,} parameters{note}; strategy {strategy}"


def sample_inputs(config: Config) -> Inputs:
    """The network at the last of the steps to record, or else the initial one; `origin` says which.

    It is taken from the run as far as that is trained, or from `training.checkpoints`.
    """
    problem = load_problem(config.problem, config.problem_path)  # refuses what it does not know
    run, split = RunDir(config.run_dir), config.hessian.splits[-1]
    training, steps = config.training, config.training.record_steps
    if run.parameters.exists() and run.hessian_data.exists():
        there = describe(run)
        known = [step for step in steps if step in there.steps and split in there.datapoints]
        if known and (training.checkpoints is None or known[-1] == steps[-1]):
            recorded = load_inputs(Context(run, config, method_name(config), known[-1], split))
            return replace(recorded, origin=f"recorded step {known[-1]} of {run.path}")
    model = in_mode(initial_model(problem, training.seed), config.hessian)
    origin = "the initial network"
    if training.checkpoints is not None:
        ((step, path),) = files_of(training, steps[-1:]).items()
        load_into(model, path)
        origin = f"parameters of {path}, step {step}"
    data = hessian_batch(load_data(problem, split), split, config.hessian)
    return Inputs(problem, model, data, origin=origin)
