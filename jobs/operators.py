"""The curvature operator of one Hessian of a run, from the run directory alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from skerch.curvature.batching import split_batch, to_device
from skerch.curvature.hessian import HessianOperator
from skerch.curvature.parameters import as_precision
from skerch.errors import SkerchError
from skerch.jobs import problems
from skerch.jobs.config import difference, identity
from skerch.jobs.recorded import (
    RecordedError,
    column,
    describe,
    load_hessian_data,
    load_model,
)
from skerch.jobs.schema import ConfigError, Hessian
from skerch.measurements.manifest import manifest_path

if TYPE_CHECKING:
    from skerch.jobs.config import Config
    from skerch.jobs.stage import Context


class DeviceError(SkerchError):
    """A device that this machine does not have."""


def resolve_device(config: Config) -> torch.device:
    """`launcher.device`, where "auto" is CUDA if there is one and the CPU otherwise."""
    name = config.launcher.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(
            f"launcher.device={name}, but PyTorch sees no CUDA device here; set it to cpu or auto."
        )
    number = name.partition(":")[2]
    if number and int(number) >= torch.cuda.device_count():
        raise DeviceError(
            f"launcher.device={name}, but PyTorch sees {torch.cuda.device_count()} CUDA devices "
            "here, counted from cuda:0; set it to one of them, or to cuda."
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "launcher.device=mps, but PyTorch sees no such device here; set it to cpu."
        )
    return torch.device(name)


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


def hessian_operator(
    config: Config, inputs: Inputs, recorded: Mapping[str, Any] | None = None
) -> HessianOperator:
    """The operator on the device and in the dtype of a config.

    Strategy, chunk size and memory format are what a manifest has `recorded`, if given, and else
    the config's. What was laid out with a fingerprint is not checked again. The model is moved, not
    copied; its complex tensors stay complex.
    """
    hessian, device = config.hessian, resolve_device(config)
    dtype = getattr(torch, hessian.dtype)
    how = recorded or vars(hessian)
    data = to_device(inputs.data, device, dtype)
    model = inputs.model.to(device)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = as_precision(tensor.data, dtype)
    return HessianOperator(
        model,
        split_batch(data, hessian.batch_size) if hessian.batch_size else [data],
        inputs.problem.loss_fn,
        batch_weight=inputs.problem.batch_weight,
        param_filter=hessian.param_filter,
        strategy=how["strategy"],
        chunk_size=how["chunk_size"],
        memory_format=how.get("memory_format", "preserve"),
        check="fingerprint" not in how,
    )
