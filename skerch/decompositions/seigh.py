"""The sketched eigendecomposition of a symmetric operator, in core.

The same measurements, summary and recoveries as the pipeline's, with the array in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor

from skerch.decompositions import recoveries
from skerch.decompositions.recoveries.core import asymmetry, largest
from skerch.decompositions.solve import Solution, solve
from skerch.decompositions.target import Target, judged
from skerch.errors import ShapeError, SkerchError
from skerch.estimate import Estimate, extremes
from skerch.linops.adapters import as_operand
from skerch.linops.base import LinearOperator
from skerch.measurements.gram import gram, multiply
from skerch.measurements.manifest import Manifest
from skerch.measurements.measure import Measurer, NonFiniteError
from skerch.measurements.range_finder import range_map, with_fresh
from skerch.measurements.start import start_map
from skerch.measurements.summary import Summary, summarise
from skerch.measurements.team import Rows
from skerch.rounding import rounding


@dataclass(frozen=True)
class EighResult:
    """Eigenpairs of a symmetric operator, sorted by decreasing magnitude: H ≈ W diag(λ) Wᵀ."""

    eigenvalues: Tensor  # (k,), float64
    eigenvectors: Tensor  # (N, k), orthonormal columns, of the operator's dtype or `dtype`
    residual: Tensor  # (k + 1,) estimated ‖H - H_r‖_F for r = 0 … k
    pair_residual: Tensor  # (k,) estimated ‖H w_i - λ_i w_i‖
    pair_bound: Tensor  # (k,) of that norm, in 95 of 100
    eigenvalue_bound: Tensor  # (k,) how far an eigenvalue of H may be from λ_i, in 95 of 100
    beyond: float  # other eigenvalues than these are taken to lie within ± this
    trace: Estimate  # of H
    norm: Estimate  # ‖H‖_F
    health: dict[str, float]  # "asymmetry" of the core, and the recovery's own figures
    products: int  # matvecs spent, the probes not counted

    @property
    def extremes(self) -> tuple[Estimate, Estimate]:
        """λ_max and λ_min of H, see `skerch.estimate.extremes`."""
        return extremes(self.eigenvalues.tolist(), self.eigenvalue_bound.tolist())


def seigh(
    op: Any,
    *,
    outer: int,
    inner: int | None = None,
    recovery: str = "nystrom",
    rounds: recoveries.Rounds | None = None,
    target: Mapping[str, float] | None = None,
    sketch: str = "sparse_sign",
    probes: int = 30,
    seed: int = 0,
    block_size: int = 64,
    dtype: torch.dtype | None = None,
    start: Any = None,
) -> EighResult:
    """The `outer` eigenpairs of largest magnitude of a symmetric operator (N, N).

    `op` is a `LinearOperator`, a tensor, a NumPy array, or an operator of SciPy or curvlinops. An
    operator has to declare that it is symmetric; a matrix (dense, or SciPy's sparse) is looked at.

    Spends `inner` matvecs (default: twice `outer`, at least 40 more than that, at most N) in blocks
    of `block_size`, and `probes` more for the error estimate. `recovery` is "nystrom", in any
    number of `rounds` or in rounds of given matvecs, such as [40, 20, 20], by default in many small
    ones; "oversampled" (the paper's, one round) or "hmt" (two). `sketch` is a kind of
    `skerch.sketch_operators`; `dtype` what the columns are kept in, the operator's by default.
    Eigenvalues below rounding, eps |λ_1|, are left out, so that fewer pairs come back from an H of
    lower rank. N matvecs are the whole matrix: unless `rounds` are asked for, it is then decomposed
    as such.

    With a `target` rounds end once they are estimated to have reached it, and `inner` is the bound
    (default: four times `outer` and 40, at most N): {"residual": 1.05} is ‖H - H_k‖_F over the best
    that k pairs leave, {"pairs": 1e-3} is ‖H w_i - λ_i w_i‖ over |λ_i| for every pair; see
    `skerch.decompositions.target`.

    A `start` (N, j), a tensor or an array, holds vectors near the eigenvectors, such as those of a
    neighbouring matrix: their span and a few random vectors are the test vectors of the first
    round, which has j + 8 columns, or more where rounds are larger. It pays where rounds are few.

    A round's test vectors are found in the products of those before, which loses digits where H is
    definite with a spectrum far from 0, such as [1, 2]: more products then hardly help, as the
    bounds show. Shift it, by `op - c * identity`, or take SciPy's eigsh.

    Warns where products are less symmetric than their dtype explains, and where the target is not
    reached. Raises ShapeError for an operator that is not square, SkerchError for one that is not
    symmetric or not declared so, and for sizes that do not fit.
    """
    op = symmetric(op, "seigh")
    size = op.shape[0]
    outer = index(outer)  # NumPy's integers, too
    if block_size < 1:
        raise SkerchError(f"block_size={block_size} must be at least 1; 64 is usual.")
    wanted = None if target is None else Target.of(target)
    if rounds is not None:
        recoveries.count_rounds(rounds)
    if inner is None:
        if rounds is None or isinstance(rounds, int):
            inner = min(recoveries.default_inner(outer, wanted is not None), size)
        else:
            inner = sum(rounds)
    if rounds is None:
        bound = wanted is not None
        planned: recoveries.Rounds = recoveries.default_rounds(recovery, outer, inner, bound=bound)
    else:
        planned = rounds
    if start is not None:
        try:
            start = torch.as_tensor(start, device=op.device)
        except (TypeError, ValueError, RuntimeError):
            raise SkerchError(
                f"start is {start!r}; it must be vectors as columns, ({size}, j) with j ≥ 1."
            ) from None
        _check_start(start, size, recovery, rounds)
        if isinstance(planned, int) and 1 < planned <= inner:
            of = recoveries.default_started_rounds if rounds is None else recoveries.started_rounds
            planned = of(start.shape[1], inner, planned)
    recoveries.check_dimension(size, outer, inner)
    recoveries.check_sizes(recovery, planned, outer, inner, probes)
    all_rounds = recoveries.RECOVERIES[recovery].each_round(planned, outer, inner, probes)
    each_columns = [each.columns for each in all_rounds]
    when = judged(each_columns[:-1], outer) if wanted else set()
    if rounds is None and inner == size and not when:
        return _of_all(op, outer, block_size, dtype or op.dtype)
    if wanted:
        wanted.check(recovery, each_columns, outer)
    stored = sum(each.stored for each in all_rounds)
    stored_dtype = op.dtype if dtype is None else dtype
    b = 0 if start is None else all_rounds[0].columns
    columns = torch.empty(size, b + stored + probes, dtype=stored_dtype, device=op.device)
    small: dict[str, Tensor] = {}
    G = P = Q = fresh = None
    if start is not None:
        W = _rows(start.to(columns))
        A, B = start_map(W, start.shape[1], size, b, stored_dtype, seed)
        columns[:, :b] = Q = _product(A, columns, B, op.dtype)
        P = torch.eye(b, dtype=torch.float64, device="cpu")
    done, stored = b, b + stored

    def solved() -> tuple[Summary, Solution]:
        """What the rounds so far come to."""
        rows = _rows(columns)
        if done < stored:
            rows = _joined(columns[:, :done], columns[:, stored:])
        summary = summarise(
            gram(rows, size, known=G),
            rows,
            size,
            done,
            stored_dtype,
            cross=small.get("cross", torch.zeros(0, probes, dtype=torch.float64, device="cpu")),
            norm=small.get("norm", torch.zeros(0, dtype=torch.float64, device="cpu")),
            inner=small.get("inner"),
            range_map=P,
            fresh=fresh,
            quadratic=small["quadratic"],
            start_probes=small.get("start"),
        )
        return summary, solve(summary, recovery, outer)

    with op.frozen():
        for each in all_rounds:
            Y = columns[:, :done]
            if each.round > 1:
                G = gram(_rows(Y), size, known=G)
                if wanted and each.round - 1 in when:
                    summary, solution = solved()
                    so_far = each_columns[: each.round - 1]
                    if wanted.judge(summary, solution, so_far, outer).reached:
                        break
                P = range_map(G, _rows(Y), size, each.columns, stored_dtype, P, b)
                A, B = _rows(Y), P[:, -each.columns :]
                if each is not all_rounds[-1]:
                    probed = _joined(Y, columns[:, stored:])
                    fresh, A, B = with_fresh(B, G, A, probed, size, stored_dtype, seed, fresh, b)
                Q = _product(A, Y, B, op.dtype)
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
        else:
            summary, solution = solved()
            if wanted and not wanted.judge(summary, solution, each_columns, outer).reached:
                warnings.warn(
                    f"{target} is not reached within inner={inner} matvecs; raise inner.",
                    stacklevel=2,
                )
    _warn_of_asymmetry(op, solution.health)
    Y = columns[:, :done]
    vectors = _product(_rows(Y), Y, solution.coefficients, stored_dtype)
    assert solution.trace is not None
    return EighResult(
        solution.eigenvalues,
        vectors,
        solution.residual,
        solution.pair_residual,
        solution.pair_bound,
        solution.eigenvalue_bound,
        solution.beyond,
        solution.trace,
        solution.norm,
        solution.health,
        inner if done == stored else done,
    )


def _check_start(start: Tensor, size: int, recovery: str, rounds: recoveries.Rounds | None) -> None:
    """Refuse a start that is no matrix of vectors (N, j), or for which there is no recovery."""
    if recovery != "nystrom":
        raise SkerchError(f"Recovery {recovery!r} has no start; take nystrom, or leave it away.")
    if rounds is not None and recoveries.count_rounds(rounds) == 1:
        raise SkerchError("A start needs a second round, in which it is corrected; take rounds=2.")
    if start.ndim != 2 or len(start) != size or not start.shape[1]:
        raise ShapeError(
            f"start has the shape {tuple(start.shape)}; it must be vectors as columns, "
            f"({size}, j) with j ≥ 1."
        )


def _of_all(op: LinearOperator, outer: int, block_size: int, dtype: torch.dtype) -> EighResult:
    """From the whole matrix, in float64; the eigenvectors in `dtype`."""
    unit = torch.eye(op.shape[0], dtype=op.dtype, device=op.device)
    with op.frozen():
        H = torch.cat([(op @ part).detach() for part in unit.split(block_size, dim=1)], dim=1)  # type: ignore[no-untyped-call]
    H = H.double().cpu()
    wrong = torch.nonzero(~H.isfinite().all(dim=0))[:, 0]
    if len(wrong):
        raise NonFiniteError(f"Column {int(wrong[0])} of the matrix is not finite.")
    health = {"asymmetry": asymmetry(H)}
    _warn_of_asymmetry(op, health)
    values, vectors = largest(H, len(H))
    tail = values.square().flip(0).cumsum(0).flip(0).sqrt()
    residual = torch.cat([tail, tail.new_zeros(1)])
    there = int((values[:outer].abs() > torch.finfo(op.dtype).eps * values[0].abs()).sum())
    rest, values, vectors = values[there:], values[:there], vectors[:, :there]
    pair_residual = torch.linalg.norm(H @ vectors - vectors * values, dim=0)
    rounding = 10 * torch.finfo(op.dtype).eps * float(tail[0])
    bound = pair_residual + rounding
    return EighResult(
        values,
        vectors.to(op.device, dtype),
        residual[: there + 1],
        pair_residual,
        bound,
        bound,
        float(rest[:1].abs().sum()) + rounding,
        Estimate(float(H.trace()), rounding * len(H) ** 0.5),
        Estimate(float(tail[0]), rounding),
        health,
        len(H),
    )


def symmetric(op: Any, caller: str) -> LinearOperator:
    """`op` as a `LinearOperator`, refused unless it is symmetric; `caller` is named in errors."""
    operator = as_operand(op)
    if operator.shape[1] != operator.shape[0]:
        raise ShapeError(
            f"{caller} needs a square operator, not one of shape {operator.shape}; see ssvd."
        )
    if not operator.self_adjoint:
        raise SkerchError(
            f"{caller} needs a symmetric operator, and {operator} is neither a symmetric matrix "
            "nor declared symmetric; take (A + A.T) / 2 or ssvd, or, if it is, wrap it by "
            "aslinearoperator(..., self_adjoint=True)."
        )
    return operator


def _warn_of_asymmetry(op: LinearOperator, health: dict[str, float]) -> None:
    """Warn where products are less symmetric than rounding explains."""
    asymmetry = health.get("asymmetry", 0.0)
    if asymmetry > rounding(op.precision):
        warnings.warn(
            f"{op!r} is declared symmetric, and its products are so to {asymmetry:.1g} only, "
            f"where rounding explains {rounding(op.precision):.1g}: they are inexact, or of "
            "another matrix each time.",
            stacklevel=3,
        )


def _rows(A: Tensor) -> Rows:
    return lambda start, stop: A[start:stop]


def _joined(Y: Tensor, Z: Tensor) -> Rows:
    return lambda start, stop: torch.cat([Y[start:stop], Z[start:stop]], dim=1)


def _product(rows: Rows, like: Tensor, B: Tensor, dtype: torch.dtype) -> Tensor:
    """A B in `dtype`, computed in float64 by slabs; A has as many `rows` as `like`."""
    product = like.new_empty(len(like), B.shape[1], dtype=dtype)

    def put(start: int, stop: int, slab: Tensor) -> None:
        product[start:stop] = slab

    multiply(rows, len(like), B, dtype, put)
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
