"""Solve the merged summary for eigenpairs, and write the eigenvectors in a streaming pass."""

from __future__ import annotations

from skerch.decompositions.core import solve
from skerch.decompositions.eigh_file import write_eigh
from skerch.jobs.stage import Context, main
from skerch.measurements.array import StoredColumns
from skerch.measurements.merge import MergedArray, MergeError


def run(context: Context) -> None:
    """Write eigh.h5 from merged.h5 (and from the blocks, if it has no columns)."""
    sketch, directory = context.config.sketch, context.directory
    arrays = context.arrays()
    manifests = [array.manifest.hash() for array in arrays]
    with MergedArray(directory.merged) as merged, StoredColumns(arrays) as columns:
        if merged.manifests != manifests:
            raise MergeError(
                f"{directory.merged} was merged from other measurements than are there now; "
                "delete it and run again."
            )
        summary = merged.summary
        solution = solve(summary, sketch.recovery, sketch.outer)
        if not len(solution.eigenvalues):
            raise MergeError(
                f"The Hessian in {directory.merged} is zero, so it has no eigenpairs: the loss "
                "depends on the parameters at most linearly."
            )
        write_eigh(
            directory.eigh,
            solution,
            merged.rows or columns,
            columns.size,
            context.config.hessian.dtype,
            {
                "manifests": " ".join(manifests),
                "recovery": sketch.recovery,
                "probes": summary.probes,
            },
            lambda done, total: context.progress(done, total, "rows"),
        )


if __name__ == "__main__":
    main("decompose")
