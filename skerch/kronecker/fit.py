"""Kronecker-factored curvature of a network in one call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from skerch.errors import SkerchError
from skerch.kronecker.checks import layers_of
from skerch.kronecker.correction import Correction
from skerch.kronecker.eigenbasis import Basis, decompose
from skerch.kronecker.layers import Layer
from skerch.kronecker.methods import METHODS, make
from skerch.kronecker.methods.autocorrelation import Autocorrelation
from skerch.kronecker.methods.base import Method, Tensors
from skerch.kronecker.operator import Block, KroneckerBlock, KroneckerOperator
from skerch.kronecker.sums import Scored, Sums, sum_up

Bases = dict[str, tuple[Basis, Basis]]


def kronecker(
    curvature: Scored,
    method: str = "ekfac",
    *,
    correction: bool | None = None,
    sharing: str = "expand",
    include_bias: bool = True,
    iterations: int | None = None,
    project: int | None = None,
    factor_eigh: str = "exact",
    rank: int | None = None,
    tol: float | None = None,
    seed: int = 0,
) -> KroneckerOperator:
    """The Kronecker-factored approximation of a Fisher matrix, as an operator with inverses.

    Args:
        curvature: a `FisherOperator` (samples=0: the exact expectation over labels; samples=M: M
            draws, each by its example's number), or an `EmpiricalFisherOperator`.
        method: kfac, ekfac, tkfac, shampoo, nearest or autocorrelation.
        correction: whether eigenvalues are those that the Fisher matrix has in the factors'
            eigenbasis, which takes another pass; by default ekfac's are.
        sharing: of weights over positions, in K-FAC: expand or reduce.
        include_bias: whether a bias is the last column of its weight, or left out.
        iterations: passes of nearest.
        project: rows of the sketch that autocorrelation takes of larger layers.
        factor_eigh, rank, tol: exact, or sketched with so many eigenvectors of a factor, or with as
            many as leave so much of its Frobenius norm.
        seed: of sketches.
    """
    if method not in METHODS:
        raise SkerchError(f"The method {method} is unknown; choose {', '.join(METHODS)}.")
    if not isinstance(curvature, Scored):
        raise SkerchError(
            f"{method} is of a FisherOperator or an EmpiricalFisherOperator, not of a "
            f"{type(curvature).__name__}."
        )
    dense, kfac = method == "autocorrelation", method in ("kfac", "ekfac")
    sketched = factor_eigh == "sketched" and not dense
    for name, idle, whose in (
        ("sharing", sharing != "expand" and not kfac, "method=kfac or ekfac"),
        ("iterations", iterations is not None and method != "nearest", "method=nearest"),
        ("project", project is not None and not dense, "method=autocorrelation"),
        ("factor_eigh", factor_eigh != "exact" and dense, "methods with factors S and A"),
        ("rank", rank is not None and not sketched, "factor_eigh=sketched"),
        ("tol", tol is not None and not sketched, "factor_eigh=sketched"),
    ):
        if idle:
            raise SkerchError(f"{name} is of {whose}, and does nothing here; leave it out.")
    if iterations is not None and iterations < 1:
        raise SkerchError(f"iterations={iterations} is no number of passes, 1 or above.")
    found = layers_of(curvature, include_bias=include_bias)
    layers, row = found.covered, METHODS[method]
    corrected = row.corrected if correction is None else correction
    if correction is not None and row.corrected is None:
        raise SkerchError("autocorrelation has no eigenvalues to correct; leave correction out.")
    options: dict[str, Any] = {"sharing": sharing} if kfac else {}
    if dense:
        options = {"project": project, "seed": seed}
    factors: dict[str, Tensors] | None = None
    for number in range(
        1, (row.passes if iterations is None else iterations) + 1 if method == "nearest" else 2
    ):
        if method == "nearest":
            options = {"before": factors, "number": number}
        current: Method = make(method, **options)
        factors = factors_of(current, layers, sum_up(curvature, layers, current))
    assert factors is not None
    blocks: list[Block]
    if isinstance(current, Autocorrelation):
        blocks = [current.block(layer, factors[layer.name]) for layer in layers]
    else:
        bases = eigenbases(layers, factors, factor_eigh, rank=rank, tol=tol, seed=seed)
        values: Mapping[str, Tensor] = {}
        if corrected:
            pass_ = Correction(bases)
            sums = sum_up(curvature, layers, pass_)
            values = {n: f["values"] for n, f in factors_of(pass_, layers, sums).items()}
        blocks = [
            KroneckerBlock.of(layer, *bases[layer.name], values.get(layer.name)) for layer in layers
        ]
    return KroneckerOperator(
        {name: p.shape for name, p in curvature.params.items()},
        blocks,
        uncovered=found.uncovered,
        dtype=curvature.dtype,
        device=curvature.device,
    )


def factors_of(method: Method, layers: list[Layer], sums: Sums) -> dict[str, Tensors]:
    """The factors of each layer, by its name."""
    return {
        layer.name: method.factors(layer, sums.layers[layer.name], sums.total) for layer in layers
    }


def eigenbases(
    layers: list[Layer], factors: Mapping[str, Tensors], factor_eigh: str = "exact", **options: Any
) -> Bases:
    """The eigendecompositions of S and A of each layer, by its name."""
    return {
        layer.name: (
            decompose(factors[layer.name]["S"], how=factor_eigh, **options),
            decompose(factors[layer.name]["A"], how=factor_eigh, **options),
        )
        for layer in layers
    }
