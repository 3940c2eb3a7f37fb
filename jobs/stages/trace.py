"""The trace of a Hessian, and how far it may be off."""

from __future__ import annotations

import math
from typing import Any

from skerch.analysis.figures import trace_figure
from skerch.analysis.results import TraceResults
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.krylov import counted, known_pairs, save, title
from skerch.jobs.stages.program import main
from skerch.krylov import trace


def run(context: Context) -> None:
    """Write trace.json and the figure."""
    asked = context.config.trace
    method: Any = asked.estimator
    with counted(context, asked.products, asked.products) as op:
        pairs = known_pairs(context, op)
        found = trace(
            op,
            num_matvecs=asked.products,
            method=method,
            seed=asked.seed,
            tol=asked.tol,
            deflate=pairs,
        )
    results = TraceResults(
        parameters=op.size,
        trace=found.interval,
        stderr=found.stderr if math.isfinite(found.stderr) else None,
        samples=found.samples.tolist(),
        products=found.products,
        deflated=0 if pairs is None else len(pairs[0]),
    )
    words = f"{asked.estimator}, {results.products} products"
    save(context, results, trace_figure(results, title(context, words)))


if __name__ == "__main__":
    main("trace")
