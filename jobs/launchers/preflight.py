"""What can be refused before any task runs, and N."""

from __future__ import annotations

from skerch.curvature.parameters import select_parameters
from skerch.curvature.strategies import check_strategy
from skerch.errors import SkerchError
from skerch.jobs import pipeline, problems
from skerch.jobs.config import Config, ConfigError
from skerch.jobs.stages.operator import resolve_device
from skerch.jobs.training.optimizer import make_optimizer


def count_parameters(config: Config, here: bool = True) -> int:
    """N, from the problem's network, where all that can be known before the training is in order.

    The device is looked for where tasks are to run `here`. Raises ConfigError where the problem,
    the optimizer, the device, the strategy or what the method asks for cannot be had.
    """
    problem = problems.load_problem(config.problem, config.problem_path)
    model = problems.build_model(problem)
    if config.training.checkpoints is None:
        make_optimizer(config.training, model)
    try:
        parameters = select_parameters(model, config.hessian.param_filter)
        N = sum(parameter.numel() for parameter in parameters.values())
        if here:
            resolve_device(config)
        check_strategy(config.hessian.strategy)
        pipeline.method_of(config).check(config, N)
    except SkerchError as error:
        raise ConfigError(str(error)) from error
    return N
