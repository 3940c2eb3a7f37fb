"""The network and the datapoints of one Hessian, from the run directory alone."""

from __future__ import annotations

from dataclasses import dataclass, field
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
from skerch.measurements.manifest import manifest_path


@dataclass(frozen=True)
class Inputs:
    """The network and the datapoints of one Hessian, as they lie in the run directory."""

    problem: problems.Problem
    model: torch.nn.Module  # in the mode of the config
    data: Any  # one batch of all datapoints
    hashes: dict[str, str] = field(default_factory=dict)  # what a manifest records of them
    origin: str = ""  # whose parameters these are, in words


def load_inputs(context: Context) -> Inputs:
    """The inputs of a context's step and split.

    Raises RecordedError where they are not those of the config, or of the measurements.
    """
    assert context.step is not None
    assert context.split is not None
    description = describe(context.run)
    changes = difference(description["identity"], identity(context.config, "training"))
    if changes:
        raise RecordedError(
            f"{context.run.parameters} is of another training ({'; '.join(changes)}); take the old "
            "values back, or set another run_dir."
        )
    problem = problems.load_problem(context.config.problem, context.config.problem_path)
    model = in_mode(load_model(context.run, problem, context.step), context.config.hessian)
    data = load_hessian_data(context.run, context.split)
    hashes = {
        "parameters_hash": column(model).hash(),
        "datapoints_hash": description["datapoints"][context.split],  # which was just compared
    }
    _check_measured(context, hashes)
    return Inputs(problem, model, data, hashes)


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


def _check_measured(context: Context, hashes: dict[str, str]) -> None:
    """Refuse inputs other than those that the measurements, if there are any, are of."""
    directory = context.directory.measurements(1)
    if not manifest_path(directory).exists():
        return
    measured = context.array(1).manifest.provenance
    for name, value in hashes.items():
        if value != measured[name]:
            raise RecordedError(
                f"{context.directory.path} is of other {name.removesuffix('_hash')} than "
                f"{context.run.training} has now; delete it to measure anew."
            )
