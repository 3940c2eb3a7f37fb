"""Sums of a method over parts of the datapoints: the stage that runs in parallel."""

from __future__ import annotations

from functools import partial

from skerch.jobs.stages.context import Context
from skerch.jobs.stages.kronecker import KroneckerFiles, fill
from skerch.jobs.stages.program import main


def run(context: Context) -> None:
    """Write the partial sums of the context's pass and tasks that are not there yet."""
    own = KroneckerFiles(context.directory, context.config)
    fill(context, "factors", partial(own.method, context.round))


if __name__ == "__main__":
    main("factors")
