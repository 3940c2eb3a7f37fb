"""Train a problem's network and record its parameters, and the Hessian's datapoints."""

from __future__ import annotations

from skerch.jobs.stages.context import Context
from skerch.jobs.stages.operator import resolve_device
from skerch.jobs.stages.program import main
from skerch.jobs.training.session import train


def run(context: Context) -> None:
    """Write the files of `training/`, or add to them what they lack."""
    train(
        context.run,
        context.config,
        context.progress,
        device=resolve_device(context.config),
        time_limit=context.time_limit,
    )


if __name__ == "__main__":
    main("train")
