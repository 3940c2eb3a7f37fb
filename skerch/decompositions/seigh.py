"""The sketched eigendecomposition of a symmetric operator, in core.

The same measurements, summary and recoveries as the pipeline's, with the array in memory.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from skerch.decompositions import recoveries
from skerch.decompositions.solve import solve
from skerch.errors import ShapeError, SkerchError
from skerch.linops.adapters import as_operand
from skerch.linops.base import LinearOperator
from skerch.measurements.gram import gram, multiply
from skerch.measurements.manifest import Manifest
from skerch.measurements.measure import Measurer
from skerch.measurements.range_finder import range_map
from skerch.measurements.summary import summarise
from skerch.measurements.team import Rows
from skerch.rounding import rounding


@dataclass(frozen=True)
class EighResult:
    """Eigenpairs of a symmetric operator, sorted by decreasing magnitude: H ≈ W diag(λ) Wᵀ."""

    eigenvalues: Tensor  # (k,), float64
    eigenvectors: Tensor  # (N, k), orthonormal columns, of the operator's dtype
    residual: Tensor  # (k + 1,) estimated ‖H - H_r‖_F for r = 0 … k
    health: dict[str, float]  # "asymmetry" of the core, and the recovery's own figures


def seigh(
    op: Any,
    *,
    outer: int,
    inner: int | None = None,
    recovery: str = "nystrom",
    rounds: int | None = None,
    sketch: str = "sparse_sign",
    probes: int = 30,
    seed: int = 0,
    block_size: int = 64,
    dtype: torch.dtype | None = None,
) -> EighResult:
    """The `outer` eigenpairs of largest magnitude of a symmetric operator (N, N).

    `op` is a `LinearOperator`, a tensor, a NumPy array, or an operator of SciPy or curvlinops. An
    operator has to declare that it is symmetric; a matrix (dense, or SciPy's sparse) is looked at.

    Spends `inner` matvecs (default: twice `outer`, at most N) in blocks of `block_size`, and
    `probes` more for the error estimate. `recovery` is "nystrom" (in one to four `rounds`,
    by default two), "oversampled" (the paper's, one round) or "hmt"; `sketch` a kind of
    `skerch.sketch_operators`; `dtype` what the columns are kept in, the operator's by default.
    Eigenvalues below rounding, eps |λ_1|, are left out, so that fewer pairs come back from an H of
    lower rank.

    Warns where products are less symmetric than their dtype explains. Raises ShapeError for an
    operator that is not square, SkerchError for one that is not symmetric or not declared so, and
    for sizes that do not fit.
    """
    op = _symmetric(op)
    size = op.shape[0]
    if block_size < 1:
        raise SkerchError(f"block_size={block_size} must be at least 1; 64 is usual.")
    inner = min(2 * outer, size) if inner is None else inner
    rounds = recoveries.check_sizes(recovery, rounds, outer, inner, probes)
    recoveries.check_dimension(size, inner)
    all_rounds = recoveries.RECOVERIES[recovery].each_round(rounds, outer, inner, probes)
    stored = sum(each.stored for each in all_rounds)
    stored_dtype = op.dtype if dtype is None else dtype
    columns = torch.empty(size, stored + probes, dtype=stored_dtype, device=op.device)
    small: dict[str, Tensor] = {}
    G = P = Q = None
    done = 0
    with op.frozen():
        for each in all_rounds:
            Y = columns[:, :done]
            if each.round > 1:
                G = gram(_rows(Y), size, known=G)
                P = range_map(G, _rows(Y), size, each.columns, stored_dtype, P)
                Q = _product(Y, P[:, -each.columns :], op.dtype)
            manifest = Manifest(
                size=size,
                dtype=str(op.dtype).removeprefix("torch."),
                block_size=block_size,
                sketch=sketch,
                seed=seed,
                **asdict(each),
            )
            into = {"leftouter": columns[:, done:], "probe": columns[:, stored:]}
            small |= _measure_all(op, manifest, Q, into)
            done += each.stored
    G = gram(_rows(columns), size, known=G)
    summary = summarise(
        G,
        _rows(columns),
        size,
        stored,
        stored_dtype,
        cross=small["cross"],
        norm=small["norm"],
        inner=small.get("inner"),
        range_map=P,
    )
    solution = solve(summary, recovery, outer)
    _warn_of_asymmetry(op, solution.health)
    vectors = _product(columns[:, :stored], solution.coefficients, stored_dtype)
    return EighResult(solution.eigenvalues, vectors, solution.residual, solution.health)


def _symmetric(op: Any) -> LinearOperator:
    """`op` as a `LinearOperator`, refused unless it is symmetric."""
    operator = as_operand(op)
    if operator.shape[1] != operator.shape[0]:
        raise ShapeError(
            f"seigh needs a square operator, not one of shape {operator.shape}; see ssvd."
        )
    if not operator.self_adjoint:
        raise SkerchError(
            f"seigh needs a symmetric operator, and {operator} is neither a symmetric matrix nor "
            "declared symmetric; take (A + A.T) / 2 or ssvd, or, if it is, wrap it by "
            "aslinearoperator(..., self_adjoint=True)."
        )
    return operator


def _warn_of_asymmetry(op: LinearOperator, health: dict[str, float]) -> None:
    """Warn where products are less symmetric than rounding explains."""
    asymmetry = health.get("asymmetry", 0.0)
    if asymmetry > rounding(op.dtype):
        warnings.warn(
            f"{op!r} is declared symmetric, and its products are so to {asymmetry:.1g} only, "
            f"where rounding explains {rounding(op.dtype):.1g}: they are inexact, or of another "
            "matrix each time.",
            stacklevel=3,
        )


def _rows(A: Tensor) -> Rows:
    return lambda start, stop: A[start:stop]


def _product(Y: Tensor, B: Tensor, dtype: torch.dtype) -> Tensor:
    """Y B in `dtype`, computed in float64 by slabs."""
    product = Y.new_empty(len(Y), B.shape[1], dtype=dtype)

    def put(start: int, stop: int, slab: Tensor) -> None:
        product[start:stop] = slab

    multiply(_rows(Y), len(Y), B, dtype, put)
    return product


def _measure_all(
    op: LinearOperator, manifest: Manifest, Q: Tensor | None, into: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Measure all blocks: put the columns `into` arrays by name, return the small arrays.

    The test vectors are Q's columns, if there is a Q. The small arrays are float64, rounded as the
    columns are: a recovery would divide by what small arrays resolve and columns do not.
    """
    dtype = into["probe"].dtype
    measurer = Measurer(manifest, op.device, None if Q is None else lambda a, b: Q[:, a:b])
    parts: dict[str, list[Tensor]] = {}
    for block in manifest.blocks():
        for name, array in measurer.measure(op, block).items():
            if name in into:
                into[name][:, block.start : block.stop] = array
            else:
                parts.setdefault(name, []).append(array.to(dtype).double().cpu())
    return {name: torch.cat(arrays, dim=-1) for name, arrays in parts.items()}
