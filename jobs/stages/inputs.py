"""The network and the datapoints of one Hessian, from the run directory alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from skerch.jobs import problems
from skerch.jobs.config import difference, identity
from skerch.jobs.config.schema import Hessian
from skerch.jobs.errors import ConfigError
from skerch.jobs.run_dir.training_files import (
    RecordedError,
    column,
    describe,
    load_hessian_data,
    load_model,
)
from skerch.jobs.stages.context import Context


@dataclass(frozen=True)
class Inputs:
    """The network and the datapoints of one Hessian, as they lie in the run directory."""

    problem: problems.Problem
    model: torch.nn.Module  # in the mode of the config
    data: Any  # one batch of all datapoints
    parameters_hash: str = ""  # both as a manifest records them
    datapoints_hash: str = ""
    origin: str = ""  # whose parameters these are, in words


def load_inputs(context: Context) -> Inputs:
    """The inputs of a context's step and split.

    Raises RecordedError where they are not those of the config, or of the measurements.
    """
    step, split = context.hessian
    description = describe(context.run)
    changes = difference(description.identity, identity(context.config, "training"))
    if changes:
        raise RecordedError(
            f"{context.run.parameters} is of another training ({'; '.join(changes)}); take the old "
            "values back, or set another run_dir."
        )
    problem = problems.load_problem(context.config.problem, context.config.problem_path)
    model = in_mode(load_model(context.run, problem, step), context.config.hessian)
    data = load_hessian_data(context.run, split)
    hashes = column(model).hash(), description.datapoints[split]  # which was just compared
    inputs = Inputs(problem, model, data, *hashes)
    _check_measured(context, inputs)
    return inputs


def in_mode(model: torch.nn.Module, hessian: Hessian) -> torch.nn.Module:
    """The network in eval mode; with hessian.mode=train, batch norm takes the data's statistics.

    Its running statistics are then neither used nor changed; dropout stays off.
    """
    model.eval()
    if hessian.mode == "eval":
        return model
    kind = torch.nn.modules.batchnorm._NormBase
    normalising = [module for module in model.modules() if isinstance(module, kind)]
    if not normalising:
        raise ConfigError(
            "hessian.mode=train is for batch norm, and this network has none; leave it at eval."
        )
    for module in normalising:
        module.train()
        module.track_running_stats = False
    return model


def _check_measured(context: Context, inputs: Inputs) -> None:
    """Refuse inputs other than those that the method's files, if there are any, are of."""
    measured = context.provenance
    for name in ("parameters", "datapoints") if measured else ():
        if getattr(inputs, f"{name}_hash") != getattr(measured, f"{name}_hash"):
            raise RecordedError(
                f"{context.directory.path} is of other {name} than {context.run.training} has now; "
                "delete it to measure anew."
            )
