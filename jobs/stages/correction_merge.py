"""Add up the partial sums of a correction."""

from __future__ import annotations

from functools import partial

from skerch.jobs.stages.context import Context
from skerch.jobs.stages.kronecker import KroneckerFiles, merge
from skerch.jobs.stages.program import main
from skerch.kronecker.correction import Correction


def run(context: Context) -> None:
    """Write eigenvalues.safetensors."""
    own = KroneckerFiles(context.directory, context.config)
    path_of = partial(own.tensors, "eigenvalues")
    merge(context, "correction", lambda partition: Correction(own.bases(partition)), path_of)


if __name__ == "__main__":
    main("correction_merge")
