"""Solve the merged summary for eigenpairs, and write the eigenvectors in a streaming pass."""

from __future__ import annotations

from skerch.decompositions.eigh_file import write_eigh
from skerch.decompositions.solve import solve
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.judge import judge
from skerch.jobs.stages.program import main
from skerch.jobs.stages.sketch import SketchFiles
from skerch.measurements.array import StoredColumns
from skerch.measurements.merge import MergeError

STALE = 0.5  # of ‖HZ‖² of the probes; starts of mnist_mini with less are as good as random vectors


def run(context: Context) -> None:
    """Write eigh.h5 from merged.h5 (and from the blocks, if it has no columns)."""
    sketch, directory, files = context.config.sketch, context.directory, SketchFiles(context)
    arrays = files.arrays()
    with files.merged() as merged, StoredColumns(arrays, probes=False) as columns:
        summary = merged.summary
        solution = context.team.one(lambda: solve(summary, sketch.recovery, sketch.outer))
        if context.team.writes and summary.start:
            where = directory.path.name
            _say_if_stale(where, solution.health["start"], summary.start, columns.size)
        if not len(solution.eigenvalues):
            raise MergeError(
                f"The Hessian in {directory.merged} is zero, so it has no eigenpairs: the loss "
                "depends on the parameters at most linearly."
            )
        if sketch.target is not None and len(arrays) == len(sketch.each_round()):
            context.team.one(lambda: judge(context, summary, solution, len(arrays)))
        write_eigh(
            directory.eigh,
            solution,
            merged.rows or columns,
            columns.size,
            context.config.hessian.dtype,
            {
                "manifests": " ".join(merged.manifests),
                "recovery": sketch.recovery,
                "probes": summary.probes,
                "outer": sketch.outer,
            },
            lambda done, total: context.progress(done, total, "rows"),
            context.team,
        )


def _say_if_stale(where: str, explained: float, columns: int, size: int) -> None:
    """Tell a start that is too far away to be better than random vectors."""
    if explained < STALE:
        print(
            f"{where}: the start is stale. It holds {explained:.1%} of the Hessian's products with "
            f"probes, and as many random vectors hold {columns / size:.1%}. Residuals and bounds "
            "hold; without sketch.start, or with a nearer source, as many products do more."
        )


if __name__ == "__main__":
    main("decompose")
