"""The trace of a symmetric operator: Hutchinson, Hutch++, and the choice among all estimators.

Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing
splines", Commun. Stat. Simul. Comput. 18(3), 1989; Meyer, Musco, Musco and Woodruff, "Hutch++:
optimal stochastic trace estimation", SOSA 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from skerch import a_posteriori
from skerch.errors import SkerchError
from skerch.estimate import Estimate
from skerch.krylov.backend import LinAlgBackend
from skerch.krylov.basis import Basis
from skerch.krylov.exchangeable import FIRST, within, xnystrace, xtrace
from skerch.krylov.operand import Operand
from skerch.krylov.results import TraceResult

Distribution = Literal["rademacher", "gaussian"]
Method = Literal["hutchinson", "hutch++", "xtrace", "xnystrace"]


def trace(
    operator: Any,
    *,
    num_matvecs: int = 100,
    method: Method = "hutch++",
    distribution: Distribution = "rademacher",
    seed: int | None = None,
    tol: float | None = None,
    deflate: Any = None,
    block_size: int | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> TraceResult:
    """An estimate of the trace, from at most `num_matvecs` products.

    method: "hutch++"; "hutchinson", the one in O(1) vectors, and the best for flat spectra;
        "xtrace", the most exact one for any symmetric operator; "xnystrace" for positive
        semidefinite ones, such as a GGN or a Fisher matrix, where it is more exact than all.
    distribution: of Hutchinson's test vectors.
    seed: of the test vectors; None takes a fresh one.
    tol: stop once the interval is within ± tol |estimate|.
    deflate: eigenpairs that are known, as for `skerch.krylov.operand.Operand`: only what they leave
        of the operator is estimated. The estimate has no bias whatever they are.
    block_size: vectors that go through the operator together; by default as many as 256 MiB hold,
        64 at most.

    `interval` holds in 95 of 100. Raises ShapeError for an operator that is not square, SkerchError
    for one that is not symmetric or not declared so, and for sizes that do not fit.
    """
    if num_matvecs < 1:
        raise SkerchError(f"num_matvecs must be at least 1, not {num_matvecs}.")
    how: dict[str, Any] = {"seed": seed, "tol": tol, "deflate": deflate, "block_size": block_size}
    if method == "hutchinson":
        return hutchinson(
            operator, num_samples=num_matvecs, distribution=distribution, backend=backend, **how
        )
    if method not in OTHERS:
        raise SkerchError(f"{method=!r} is unknown; there are hutchinson, {', '.join(OTHERS)}.")
    return OTHERS[method](operator, num_matvecs=num_matvecs, backend=backend, **how)


def hutchinson(
    operator: Any,
    *,
    num_samples: int = 100,
    distribution: Distribution = "rademacher",
    seed: int | None = None,
    tol: float | None = None,
    deflate: Any = None,
    block_size: int | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> TraceResult:
    """The trace as the mean of gᵀAg over random vectors g; arguments as for `trace`."""
    A = Operand(operator, "hutchinson", backend, deflate=deflate, block_size=block_size)
    if num_samples < 1:
        raise SkerchError(f"num_samples must be at least 1, not {num_samples}.")
    with A.frozen():
        samples = Samples(A, distribution, A.backend.seed(seed))
        samples.draw(range(num_samples), A, A.known_trace, tol)
    return samples.result(A.known_trace)


def hutch_plus_plus(
    operator: Any,
    *,
    num_matvecs: int = 99,
    seed: int | None = None,
    tol: float | None = None,
    deflate: Any = None,
    block_size: int | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> TraceResult:
    """The trace of QᵀAQ, and Hutchinson's estimate on (I - QQᵀ)A(I - QQᵀ); as for `trace`.

    Q (n, num_matvecs / 3) spans a sketch of A, and is all that is held in memory. With a `tol`, the
    last third of the products may end early.
    """
    A = Operand(operator, "hutch_plus_plus", backend, deflate=deflate, block_size=block_size)
    if num_matvecs < 1:
        raise SkerchError(f"num_matvecs must be at least 1, not {num_matvecs}.")
    count = min(num_matvecs // 3, A.size)
    seed = A.backend.seed(seed)
    basis = Basis(A, count, seed, "krylov")
    inside = A.known_trace
    with A.frozen():
        for start in range(0, count, A.block_size):
            stop = min(start + A.block_size, count)
            basis.rows[start:stop] = A(A.rademacher(range(start, stop), seed, "estimate")).T
            basis.size += basis.orthonormalise(stop - start)[2]
        for start in range(0, count, A.block_size):
            Q = basis.block(start, min(start + A.block_size, count))
            inside += float(A.backend.dots(Q, A(Q)).sum())

        def outside(G: Tensor) -> Tensor:
            Q = basis.columns
            Y = A(torch.addmm(G, Q, A.backend.inner(Q, G).to(G), alpha=-1))
            return Y.addmm_(Q, A.backend.inner(Q, Y).to(Y), alpha=-1)

        samples = Samples(A, "rademacher", seed)
        samples.draw(range(count, num_matvecs - count), outside, inside, tol)
    return samples.result(inside)


class Samples:
    """gᵀEg for random vectors g, and ‖E‖_F², which tells of their scatter.

    For signs g only the entries beside the diagonal scatter, and the sums of squares of Eg and of
    means of g∘Eg, which estimate the diagonal, tell them apart.
    """

    def __init__(self, operand: Operand, distribution: Distribution, seed: int):
        laws = {"rademacher": operand.rademacher, "gaussian": operand.randn}
        if distribution not in laws:
            raise SkerchError(
                f"distribution={distribution!r} is unknown; there are {', '.join(laws)}."
            )
        self.operand, self.seed, self.law = operand, seed, laws[distribution]
        self.has_signs = distribution == "rademacher"
        self.values = torch.empty(0, dtype=torch.float64, device="cpu")
        self.squares, self.diagonals = 0.0, operand.like.new_zeros(operand.local_size, 1)

    def draw(
        self,
        columns: range,
        product: Callable[[Tensor], Tensor],
        inside: float,
        tol: float | None,
    ) -> None:
        """Take a sample of each column, by blocks; end once within ± tol |estimate|."""
        dots, step = self.operand.backend.dots, self.operand.block_size
        step = step if tol is None else min(step, FIRST)
        for start in range(0, len(columns), step):
            G = self.law(columns[start : start + step], self.seed, "estimate")
            Y = product(G)
            self.values = torch.cat([self.values, dots(G, Y)])
            self.squares += float(dots(Y, Y).sum())
            if self.has_signs:
                self.diagonals += Y.mul_(G).sum(1, keepdim=True)  # Y may be G itself
            if within(self.interval(inside), tol):
                break

    @property
    def square(self) -> float:
        """‖E‖_F²; less the diagonal's where that does not scatter."""
        m = len(self.values)
        if not self.has_signs or m == 1:
            return self.squares / m
        of_means = float(self.operand.backend.dots(self.diagonals, self.diagonals)) / m
        return max(self.squares - of_means, 0.0) / (m - 1)

    def interval(self, inside: float) -> Estimate:
        """The trace, with `inside` added, in 95 of 100; see `skerch.a_posteriori.trace`."""
        m = len(self.values)
        squares = [self.squares / m, self.square]
        norms = torch.tensor(squares, dtype=torch.float64, device="cpu").sqrt()
        none = self.values.new_empty(0, m)
        rounding = 10 * self.operand.eps * (float(norms[0]) + abs(inside))
        found = a_posteriori.trace(none[:, 0], none, self.values, norms, rounding)
        return Estimate(found.value + inside, found.error)

    def result(self, inside: float) -> TraceResult:
        """The estimate, with `inside` added."""
        interval = self.interval(inside)
        m = len(self.values)
        stderr = float(self.values.std()) / math.sqrt(m) if m > 1 else math.nan
        samples = self.values.to(self.operand.like)
        return TraceResult(interval.value, stderr, samples, interval, self.operand.products)


OTHERS: dict[str, Callable[..., TraceResult]] = {
    "hutch++": hutch_plus_plus,
    "xtrace": xtrace,
    "xnystrace": xnystrace,
}
