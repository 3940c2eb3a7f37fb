"""The curvature operator of one Hessian of a run, from the run directory alone."""

from __future__ import annotations

from importlib import import_module

import torch

from skerch.curvature.batching import split_batch, to_device
from skerch.curvature.operator import LossCurvature
from skerch.curvature.parameters import as_precision
from skerch.curvature.strategies import Choice
from skerch.errors import SkerchError
from skerch.jobs.config import Config
from skerch.jobs.config.curvatures import CURVATURES, FISHERS
from skerch.jobs.config.methods import METHODS
from skerch.jobs.run_dir.provenance import Provenance
from skerch.jobs.stages.inputs import Inputs


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


def curvature_operator(
    config: Config, inputs: Inputs, recorded: Provenance | Choice | None = None
) -> LossCurvature:
    """The operator on the device and in the dtype of a config.

    Strategy, chunk size and memory format are those `recorded`, if given, and else the config's.
    What was laid out with a fingerprint is not checked again. The model is moved, not
    copied; its complex tensors stay complex.
    """
    hessian, device = config.hessian, resolve_device(config)
    dtype = getattr(torch, hessian.dtype)
    how = recorded or hessian
    data = to_device(inputs.data, device, dtype)
    model = inputs.model.to(device)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = as_precision(tensor.data, dtype)
    name, options = hessian.curvature, {}
    if METHODS[config.method].family == "kronecker":
        asked = config.kronecker
        name = FISHERS[asked.fisher]
        options = {"samples": asked.samples, "seed": asked.seed} if asked.fisher == "mc" else {}
    module = import_module(f"skerch.curvature.{name}")
    kind: type[LossCurvature] = getattr(module, CURVATURES[name])
    return kind.of_loss(
        model,
        split_batch(data, hessian.batch_size) if hessian.batch_size else [data],
        inputs.problem.loss_fn,
        batch_weight=inputs.problem.batch_weight,
        param_filter=hessian.param_filter,
        strategy=how.strategy,
        chunk_size=how.chunk_size,
        memory_format=how.memory_format,
        check=not (isinstance(how, Provenance) and how.fingerprint),
        **options,
    )
