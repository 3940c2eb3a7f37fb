"""Add up the partial sums of a pass, and make factors of them."""

from __future__ import annotations

from functools import partial

from skerch.jobs.pipeline.kronecker import factor_file
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.kronecker import KroneckerFiles, merge
from skerch.jobs.stages.program import main


def run(context: Context) -> None:
    """Write the factors of the context's pass; the last one's are factors.safetensors."""
    own = KroneckerFiles(context.directory, context.config)
    path_of = partial(factor_file, context.config, context.directory, context.round)
    merge(context, "factors", partial(own.method, context.round), path_of)


if __name__ == "__main__":
    main("factors_merge")
