"""Eigenpairs at an end of a Hessian's spectrum, and their overlap with the largest parameters."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from skerch.a_posteriori import eigenspace_sines, eigenvalue_bounds
from skerch.analysis.figures import lanczos_figure
from skerch.analysis.modules import module_shares, module_sizes
from skerch.analysis.overlap import overlap
from skerch.analysis.results import LanczosResults
from skerch.curvature.parameters import params_to_vector, select_parameters
from skerch.decompositions.eigh_file import write_pairs
from skerch.jobs.stages.analyze import plain
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs
from skerch.jobs.stages.krylov import counted, manifests, save, title
from skerch.jobs.stages.masks import other_masks
from skerch.jobs.stages.program import main
from skerch.jobs.stages.sketch import SketchFiles
from skerch.krylov import lanczos

ROUNDINGS = 10  # eps of the dtype, which products may be off by beside ‖A‖


def run(context: Context) -> None:
    """Write eigh.h5, lanczos.json and the figure."""
    asked = context.config.lanczos
    which: Any = asked.which
    with counted(context, asked.block_size, asked.max_products or 0) as op:
        found = lanczos(
            op,
            k=asked.k,
            max_iter=asked.max_products and max(1, asked.max_products // asked.block_size),
            tol=asked.tol,
            which=which,
            seed=asked.seed,
            block_size=asked.block_size,
        )
    values, rho = found.eigenvalues.double().cpu(), found.residuals.double().cpu()
    bound, sines, beyond = _errors(asked.which, values, rho, found.eigenvectors.dtype)
    write_pairs(
        context.directory.eigh,
        found.eigenvectors.T,
        {
            "eigenvalues": values,
            "pair_residual": rho,
            "pair_bound": rho,
            "eigenvalue_bound": bound,
        },
        {"manifests": " ".join(manifests(context)), "beyond": beyond, "products": found.products},
    )
    selected = select_parameters(load_inputs(context).model, context.config.hessian.param_filter)
    parameters = params_to_vector(selected)
    with SketchFiles(context).eigh() as file:
        others = other_masks(context, selected)
        result = overlap(
            file.eigenvectors,
            parameters,
            sines=sines,
            orders=[*others.orders.values()],
            given=[*others.given.values()],
            seed=asked.seed,
        )
        shares = module_shares(values, file.eigenvectors, module_sizes(selected))
    results = LanczosResults(
        parameters=len(parameters),
        eigenvalues=values.tolist(),
        residual=(),
        residual_bounds=(),
        scree_bounds=(),
        eigenvalue_bound=bound.tolist(),
        which=asked.which,
        pair_residual=rho.tolist(),
        converged=found.converged.tolist(),
        products=found.products,
        modules=[astuple(share) for share in shares],
        **others.fields,
        **plain(result),
    )
    words = f"{asked.k} eigenpairs of N = {results.parameters:,} from {results.products} products"
    save(context, results, lanczos_figure(results, title(context, words)))


def _errors(
    which: str, values: Tensor, rho: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, float]:
    """How far eigenvalues and eigenspaces may be off, and what all other eigenvalues are within.

    Bounds are for values by magnitude, largest first. Those at an end of the spectrum are so once
    all are shifted away from it.
    """
    size = float(values.abs().max())
    shifted = values if which == "LM" else 2 * size + (values if which == "LA" else -values)
    off = ROUNDINGS * size * torch.finfo(dtype).eps
    bound = eigenvalue_bounds(shifted, rho, torch.zeros_like(rho), off)
    beyond = float(shifted[-1].abs() + bound[-1])
    sines = eigenspace_sines(shifted, rho, bound, beyond)
    return bound, sines, beyond if which == "LM" else math.inf


if __name__ == "__main__":
    main("lanczos")
