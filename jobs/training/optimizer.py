"""The optimizer that a config names."""

from __future__ import annotations

from inspect import unwrap

import torch
from torch import nn

from skerch.jobs.config.schema import Training
from skerch.jobs.errors import ConfigError, unknown


def make_optimizer(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a config names."""
    classes = {
        name: value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }
    if training.optimizer not in classes:
        raise ConfigError(unknown("optimizer", training.optimizer, classes))
    kind = classes[training.optimizer]
    # PyTorch wraps these methods for its compiler, whose import takes as long as PyTorch's own.
    methods = {name: unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad")}
    lean = type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(unwrap(kind.step))})
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        optimizer: torch.optim.Optimizer = lean(
            parameters, lr=training.lr, **training.optimizer_options
        )
        return optimizer
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"training.optimizer_options do not fit {training.optimizer}: {error}."
        ) from error
