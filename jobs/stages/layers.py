"""Which layers have Kronecker factors, and how products are computed: both written once."""

from __future__ import annotations

from skerch.errors import SkerchError
from skerch.jobs.run_dir import provenance, results_file
from skerch.jobs.run_dir.layers_file import LayersFile
from skerch.jobs.stages.assess import PROBES
from skerch.jobs.stages.choice import choose, operator
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.krylov import manifests
from skerch.jobs.stages.program import main
from skerch.kronecker.checks import layers_of


def run(context: Context) -> None:
    """Write provenance.json and layers.json."""
    asked = context.config.kronecker
    if context.provenance is None:
        _, chosen = choose(context, PROBES)
        provenance.write(context.directory.provenance, chosen)
    op = operator(context)
    found = layers_of(op, include_bias=asked.include_bias)  # type: ignore[arg-type]
    if len(found.covered) < asked.partitions:
        raise SkerchError(
            f"{len(found.covered)} layers have Kronecker factors, too few for "
            f"kronecker.partitions={asked.partitions}; take as many at most."
        )
    results = LayersFile(
        {name: list(p.shape) for name, p in op.params.items()},
        [layer.to_json() for layer in found.covered],
        found.uncovered,
    )
    results_file.write(context.directory.layers, results, manifests(context))


if __name__ == "__main__":
    main("layers")
