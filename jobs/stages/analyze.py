"""How far the top eigenspace overlaps with the largest parameters, as numbers and as a picture."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import torch

from skerch.a_posteriori import interval, scree_bounds
from skerch.analysis.approximation import ApproximationResult
from skerch.analysis.figures import hessian_figure, save
from skerch.analysis.modules import module_shares, module_sizes
from skerch.analysis.overlap import OverlapResult, overlap
from skerch.analysis.results import HessianResults
from skerch.curvature.parameters import params_to_vector, select_parameters
from skerch.estimate import Estimate
from skerch.jobs.run_dir import results_file, rounds_file
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs
from skerch.jobs.stages.masks import other_masks
from skerch.jobs.stages.program import main
from skerch.jobs.stages.sketch import SketchFiles
from skerch.rounding import rounding


def run(context: Context) -> None:
    """Write overlap.json and the Hessian's figure."""
    config, directory = context.config, context.directory
    model = load_inputs(context).model
    selected = select_parameters(model, config.hessian.param_filter)
    parameters = params_to_vector(selected)
    with SketchFiles(context).eigh() as file:
        eigenvalues, residual, probes = file.eigenvalues, file.residual, file.probes
        manifests, asymmetry, bound = file.manifests, file.asymmetry, file.eigenvalue_bound
        trace, norm = file.trace or (), file.norm or ()
        seed, sines = config.sketch.seed, file.sines
        others = other_masks(context, selected)
        result = overlap(
            file.eigenvectors,
            parameters,
            sines=sines,
            orders=[*others.orders.values()],
            given=[*others.given.values()],
            seed=seed,
        )
        shares = module_shares(eigenvalues, file.eigenvectors, module_sizes(selected))
    lower, upper = interval(eigenvalues, residual, probes)
    results = HessianResults(
        parameters=len(parameters),
        eigenvalues=eigenvalues.tolist(),
        residual=residual.tolist(),
        residual_bounds=[lower.tolist(), upper.tolist()],
        scree_bounds=[bound.tolist() for bound in scree_bounds(eigenvalues, residual)],
        asymmetry=asymmetry,
        rounding=rounding(getattr(torch, config.hessian.dtype)),
        eigenvalue_bound=() if bound is None else bound.tolist(),
        trace=trace,
        norm=norm,
        modules=[astuple(share) for share in shares],
        **others.fields,
        **plain(result),
    )
    figure = hessian_figure(results, _title(context, results))
    save(figure, context.run.figure(context.name, *context.hessian))
    asked = {"outer": config.sketch.outer, "masks": config.masks}
    results_file.write(directory.overlap, results, manifests, **asked)


def plain(result: OverlapResult | ApproximationResult) -> dict[str, Any]:
    """The tensors as lists; what is not a number is None."""
    return {
        name: [None if value != value else value for value in values.tolist()]
        for name, values in vars(result).items()
    }


def _title(context: Context, results: HessianResults) -> str:
    """Which Hessian it is, what was spent on it, and figures of all of it."""
    whole = [f"{results.negative} of {len(results.eigenvalues)} negative"]
    whole += [f"trace {Estimate(*results.trace)}"] if results.trace else []
    whole += [f"‖H‖ {Estimate(*results.norm)}"] if results.norm else []
    problem = context.config.problem.get("name") or context.config.problem["factory"]
    rounds = rounds_file.rounds(context.directory, context.config.sketch)
    return (
        f"{problem}, step {context.step}, {context.split} split\n"
        f"{context.name}: {len(results.eigenvalues)} eigenpairs of N = {results.parameters:,} "
        f"from {sum(each.columns for each in rounds)} matvecs\n" + "; ".join(whole)
    )


if __name__ == "__main__":
    main("analyze")
