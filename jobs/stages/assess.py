"""How near an approximation is to its Fisher matrix, and its layers in numbers.

The products F v are taken layer by layer: F v is the sum of F E v, with E v the part of v that is
of a layer, whose own rows are the product with the layer's block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skerch.analysis.approximation import approximate
from skerch.analysis.results import KroneckerResults
from skerch.curvature.parameters import total_size
from skerch.jobs.config.pairs import source_of
from skerch.jobs.problems import user_code
from skerch.jobs.stages.analyze import plain
from skerch.jobs.stages.choice import operator, require_same
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.kronecker import KroneckerFiles
from skerch.jobs.stages.krylov import pairs_file, save, title
from skerch.jobs.stages.program import main
from skerch.kronecker.operator import Block, KroneckerOperator
from skerch.randomness import stream

PROBES, LEAST = 10, 3  # random vectors, each a product a layer; at least so many …
MOST = 300  # … and no more than leaves so many products


def count_probes(layers: int) -> int:
    """The random vectors for so many layers."""
    return max(LEAST, min(PROBES, MOST // max(1, layers)))


def run(context: Context) -> None:
    """Write the results and the figure."""
    from skerch.analysis.figures import kronecker_figure  # matplotlib takes a second

    files = KroneckerFiles(context.directory, context.config)
    approximation = files.operator()
    V = _probes(approximation, context.config.kronecker.seed)
    found = (approximation @ V.to(approximation.dtype)).double()
    whole, rows = torch.zeros_like(V), []
    op = operator(context)
    with op.frozen(), user_code("A product cannot be computed"):
        require_same(op, context)
        for done, block in enumerate(approximation.blocks, start=1):
            at = _indices(approximation, block)
            alone = torch.zeros_like(V)
            alone[at] = V[at]
            exact = (op @ alone.to(op.device, op.dtype)).cpu().double()
            whole += exact
            exact = exact[at]
            norms = (found[at] - exact).norm(dim=0), exact.norm(dim=0)
            rows.append(torch.stack([*norms, (V[at] * exact).sum(0)]))
            context.progress(done, len(approximation.blocks), "layers")
    whole *= V.abs().sum(1, keepdim=True) > 0
    wrong, norm, traces = torch.stack(rows, dim=1)  # (layers, probes)
    results = KroneckerResults(
        parameters=total_size(op.params),
        layers=[_row(block, op.dtype) for block in approximation.blocks],
        uncovered=dict(files.found.uncovered),
        trace=approximation.trace(),
        traces=traces.sum(0).tolist(),
        layer_errors=_over(wrong, norm).tolist(),
        errors=_over(wrong.norm(dim=0), norm.norm(dim=0)).tolist(),
        whole_errors=_over((found - whole).norm(dim=0), whole.norm(dim=0)).tolist(),
        changes=_changes(files) if context.config.method == "nearest" else [],
        **_captured(context, approximation),
    )
    words = (
        f"{len(results.layers)} layers, {results.covered:,} of {results.parameters:,} parameters"
    )
    save(context, results, kronecker_figure(results, title(context, words)))
    files.clear()


def _captured(context: Context, approximation: KroneckerOperator) -> dict[str, Any]:
    """How well it captures the top eigenspace that another method has found, if one is named."""
    file = pairs_file(context)
    if file is None:
        return {}
    with file:
        found = approximate(
            approximation,
            approximation.top(len(file.eigenvalues))[1],
            file.eigenvalues,
            file.eigenvectors,
            pair_residual=file.pair_bound,
            sines=file.sines,
        )
    return {"against": source_of(context.config), **plain(found)}


def _probes(operator: KroneckerOperator, seed: int) -> Tensor:
    """Random signs (N, probes) of the parameters in layers, and 0 elsewhere."""
    generator = stream(seed, "probe", 0)
    shape = operator.size, count_probes(len(operator.blocks))
    signs = torch.from_numpy(generator.integers(0, 2, shape) * 2.0 - 1.0)
    for name in operator.uncovered:
        signs[operator.columns[name]] = 0.0
    return signs


def _indices(operator: KroneckerOperator, block: Block) -> Tensor:
    """Where the parameters of a block are."""
    indices = torch.arange(operator.size, device="cpu")
    return torch.cat([indices[operator.columns[name]] for name in block.layer.shapes])


def _changes(files: KroneckerFiles) -> list[float]:
    """By how much the last pass has raised the norm of each layer's S ⊗ A, over itself."""
    if files.config.kronecker.iterations < 2:
        return []
    factors = files.factors()
    names = [str(layer["name"]) for layer in files.found.layers]
    norms = torch.stack([factors[name]["norms"].double().norm(dim=0) for name in names])
    return _over(norms[:, -1] - norms[:, -2], norms[:, -1]).tolist()


def _over(wrong: Tensor, norm: Tensor) -> Tensor:
    """The relative error, 0 where both are 0, as in layers without slopes."""
    return wrong / norm.clamp(min=torch.finfo(norm.dtype).tiny)


def _row(
    block: Block, dtype: torch.dtype
) -> tuple[str, int, int, int, float, float, float, float | None]:
    """Of a layer: name, groups, outputs, inputs, trace, mean and largest eigenvalue, condition.

    The last is None where the least eigenvalue is rounding beside the largest.
    """
    least, largest = float(block.values.min()), float(block.values.max())
    known = least > torch.finfo(dtype).eps * largest
    condition = largest / least if known else None
    return block.layer.name, *block.layer.shape, block.trace(), block.mean, largest, condition


if __name__ == "__main__":
    main("assess")
