"""Sums of the Fisher matrix's eigenvalues in the eigenbasis, over parts of the datapoints."""

from __future__ import annotations

from skerch.jobs.stages.context import Context
from skerch.jobs.stages.kronecker import KroneckerFiles, fill
from skerch.jobs.stages.program import main
from skerch.kronecker.correction import Correction


def run(context: Context) -> None:
    """Write the partial sums of the context's tasks that are not there yet."""
    own = KroneckerFiles(context.directory, context.config)
    fill(context, "correction", lambda partition: Correction(own.bases(partition)))


if __name__ == "__main__":
    main("correction")
