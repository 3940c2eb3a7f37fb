"""The eigendecompositions of factors, or of the blocks of autocorrelation."""

from __future__ import annotations

from skerch.jobs.stages.context import Context
from skerch.jobs.stages.kronecker import KroneckerFiles, numbers
from skerch.jobs.stages.program import main
from skerch.kronecker.files import basis_tensors
from skerch.kronecker.fit import eigenbases
from skerch.kronecker.layers import Layer
from skerch.kronecker.methods.autocorrelation import Autocorrelation
from skerch.kronecker.methods.base import Tensors


def run(context: Context) -> None:
    """Write eigenbasis.safetensors: eigenvalues, and eigenvectors but those of diagonals."""
    own, asked = KroneckerFiles(context.directory, context.config), context.config.kronecker
    dense = context.config.method == "autocorrelation"

    def decomposed(partition: int, layer: Layer, factors: Tensors) -> Tensors:
        if dense:
            method = own.method(1, partition)
            assert isinstance(method, Autocorrelation)
            block = method.block(layer, factors)
            return {"values": block.values, "vectors": block.vectors}
        how = {key: getattr(asked, key) for key in ("factor_eigh", "rank", "tol", "seed")}
        return basis_tensors(*eigenbases([layer], {layer.name: factors}, **how)[layer.name])

    for partition in context.team.share(lambda: numbers(context, asked.partitions, 1)):
        path, layers = own.tensors("eigenbasis", partition), own.partitions[partition]
        if path.exists():
            continue
        factors, _ = own.read(own.tensors("factors", partition))
        bases: dict[str, Tensors] = {}
        for done, layer in enumerate(layers, start=1):
            bases[layer.name] = decomposed(partition, layer, factors[layer.name])
            context.progress(done, len(layers), "layers")
        own.write(path, "eigenbasis", bases)


if __name__ == "__main__":
    main("eigenbasis")
