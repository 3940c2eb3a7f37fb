"""The distribution of a Hessian's eigenvalues."""

from __future__ import annotations

from skerch.analysis.figures import density_figure
from skerch.analysis.results import DensityResults
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.krylov import counted, known_pairs, save, title
from skerch.jobs.stages.program import main
from skerch.krylov import spectral_density

POINTS = 1000  # of the grid


def run(context: Context) -> None:
    """Write density.json and the figure."""
    asked = context.config.density
    with counted(context, asked.runs, asked.runs * asked.steps) as op:
        pairs = known_pairs(context, op)
        found = spectral_density(
            op,
            num_runs=asked.runs,
            lanczos_steps=asked.steps,
            num_grid_points=POINTS,
            seed=asked.seed,
            deflate=pairs,
        )
    nodes, weights = found.raw_eigenvalues, found.raw_weights
    there = nodes.isfinite()
    results = DensityResults(
        parameters=op.size,
        grid=found.grid.tolist(),
        density=found.density.tolist(),
        sigma=found.sigma,
        nodes=[run[is_there].tolist() for run, is_there in zip(nodes, there, strict=True)],
        weights=[run[is_there].tolist() for run, is_there in zip(weights, there, strict=True)],
        atoms=found.atoms.tolist(),
        products=found.products,
    )
    words = f"{asked.runs} runs of {asked.steps} steps, {results.products} products"
    save(context, results, density_figure(results, title(context, words)))


if __name__ == "__main__":
    main("density")
