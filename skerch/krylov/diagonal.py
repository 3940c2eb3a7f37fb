"""The diagonal, the norms of rows, and the Frobenius norm of a symmetric operator.

Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", Appl. Numer. Math. 57,
2007, for signs; XDiag and XNysDiag leave each test vector out of the sketch in turn (Epperly, Tropp
and Webber 2024, section 3, as in `skerch.krylov.exchangeable`).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from skerch import a_posteriori
from skerch.errors import SkerchError
from skerch.estimate import Estimate
from skerch.krylov.backend import LinAlgBackend
from skerch.krylov.basis import Basis
from skerch.krylov.exchangeable import FIRST, blocks, left_null_columns, shifted_inverse
from skerch.krylov.operand import Operand
from skerch.krylov.results import DiagonalResult


def diagonal(
    operator: Any,
    *,
    num_matvecs: int = 100,
    method: Literal["hutchinson", "xdiag", "xnysdiag"] = "xdiag",
    seed: int | None = None,
    tol: float | None = None,
    deflate: Any = None,
    block_size: int | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> DiagonalResult:
    """Estimates of the diagonal's entries, without bias, from at most `num_matvecs` products.

    method: "xdiag", with num_matvecs test vectors in memory; "xnysdiag" for positive semidefinite
        operators, with twice as many; "hutchinson", with few, and the best for flat spectra.
    tol: for "hutchinson": stop once ‖stderr‖₂ ≤ tol ‖estimate‖₂.

    The other arguments are those of `skerch.krylov.trace`. `stderr` is the scatter of the
    estimates, which depend on each other for all but "hutchinson": it understates their error.
    """
    methods = {"hutchinson": _hutchinson, "xdiag": _xdiag, "xnysdiag": _xnysdiag}
    if method not in methods:
        raise SkerchError(f"{method=!r} is unknown; there are {', '.join(methods)}.")
    A = Operand(operator, "diagonal", backend, deflate=deflate, block_size=block_size)
    least = 2 if method == "xdiag" else 1
    if num_matvecs < least:
        raise SkerchError(f"num_matvecs must be at least {least}, not {num_matvecs}.")
    if tol is not None and method != "hutchinson":
        raise SkerchError(f"{method} does not stop at a tolerance; hutchinson does.")
    known = (A.vectors.square() @ A.values.to(A.like)) if len(A.values) else 0.0
    moments = Moments(A, known)
    with A.frozen():
        methods[method](A, moments, num_matvecs, A.backend.seed(seed), tol)
    return moments.result()


def row_norms(
    operator: Any,
    *,
    num_matvecs: int = 100,
    seed: int | None = None,
    tol: float | None = None,
    deflate: Any = None,
    block_size: int | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> DiagonalResult:
    """Estimates of the norms of the rows, as roots of unbiased estimates of their squares.

    They are the means of (A ω)_i² over signs ω. With known pairs, A = E + L, they are those of
    (E ω)_i² + 2 (L ω)_i (E ω)_i and the exact squares for L. Arguments are those of `diagonal`.
    """
    A = Operand(operator, "row_norms", backend, deflate=deflate, block_size=block_size)
    if num_matvecs < 1:
        raise SkerchError(f"num_matvecs must be at least 1, not {num_matvecs}.")
    seed, inner = A.backend.seed(seed), A.backend.inner
    scaled = A.vectors * A.values.to(A.like)
    moments = Moments(A, (scaled @ inner(A.vectors, A.vectors).to(scaled)).mul_(scaled).sum(1))
    with A.frozen():
        for start, stop in blocks(0, num_matvecs, _step(A, tol)):
            omega = A.rademacher(range(start, stop), seed, "estimate")
            Y, known = A(omega), scaled @ inner(A.vectors, omega).to(scaled)
            moments.add(Y * (Y + 2 * known))
            if moments.are_within(tol):
                break
    found = moments.result()
    norms = found.estimate.clamp(min=0).sqrt()
    return DiagonalResult(norms, found.stderr / (2 * norms), found.products)


def frobenius_norm(
    operator: Any,
    *,
    num_matvecs: int = 30,
    seed: int | None = None,
    deflate: Any = None,
    block_size: int | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> Estimate:
    """‖A‖_F from held-out Gaussian probes, with its error; see `skerch.a_posteriori.norm`.

    The products are in memory. The other arguments are those of `skerch.krylov.trace`.
    """
    A = Operand(operator, "frobenius_norm", backend, deflate=deflate, block_size=block_size)
    if num_matvecs < 2:
        raise SkerchError(f"frobenius_norm takes at least num_matvecs=2, not {num_matvecs}.")
    seed, inner = A.backend.seed(seed), A.backend.inner
    products = A.like.new_empty(num_matvecs, A.local_size)
    a = torch.zeros(len(A.values), num_matvecs, dtype=torch.float64, device="cpu")
    with A.frozen():
        for start, stop in blocks(0, num_matvecs, A.block_size):
            G = A.randn(range(start, stop), seed, "estimate")
            a[:, start:stop] = known = inner(A.vectors, G)
            Y = A(G).addmm(A.vectors, (A.values[:, None] * known).to(A.like))
            products[start:stop] = Y.T
    F, c = inner(products.T, products.T), inner(A.vectors, products.T)
    residual = a_posteriori.residuals(A.values, a, c, torch.diagonal(F))
    rounding = 10 * A.eps * float(residual[0])
    return a_posteriori.norm(A.values, a, F, residual, rounding)


class Moments:
    """The mean and the scatter of estimates of each entry, to which a known part is added."""

    def __init__(self, operand: Operand, known: Tensor | float):
        self.operand, self.known, self.count = operand, known, 0
        shape = 2, operand.local_size
        self.mean, self.squares = operand.like.new_zeros(shape, dtype=torch.float64)

    def add(self, samples: Tensor) -> None:
        """Take the columns (n, b) for estimates."""
        for sample in samples.T:  # one by one (Welford 1962), as differences of squares lose digits
            self.count += 1
            off = sample - self.mean
            self.mean += off / self.count
            self.squares += off.mul_(sample - self.mean)

    def result(self) -> DiagonalResult:
        """The estimates of all of A."""
        like, pairs = self.operand.like, self.count * (self.count - 1)
        stderr = (self.squares / pairs).sqrt() if pairs else self.mean * math.nan
        estimate = (self.mean + self.known).to(like)
        return DiagonalResult(estimate, stderr.to(like), self.operand.products)

    def are_within(self, tol: float | None) -> bool:
        """Whether the error of all entries together is within a tolerance."""
        if tol is None or self.count < 2:
            return False
        found, norm = self.result(), self.operand.backend.norm
        return float(norm(found.stderr)) <= tol * float(norm(found.estimate))


def _step(A: Operand, tol: float | None) -> int:
    return A.block_size if tol is None else min(A.block_size, FIRST)


def _hutchinson(A: Operand, moments: Moments, count: int, seed: int, tol: float | None) -> None:
    """ω ∘ Aω for signs ω."""
    for start, stop in blocks(0, count, _step(A, tol)):
        omega = A.rademacher(range(start, stop), seed, "estimate")
        moments.add(A(omega) * omega)
        if moments.are_within(tol):
            break


def _xdiag(A: Operand, moments: Moments, num_matvecs: int, seed: int, _: float | None) -> None:
    """diag(Q_i Q_iᵀA) + ω_i ∘ (I - Q_i Q_iᵀ)Aω_i, where Q_i spans Y = AΩ = QR without column i.

    With s_i as in XTrace, I - Q_i Q_iᵀ is (Q s_i)(Q s_i)ᵀ on the range of Q, and Qᵀ A ω_i = R e_i.
    """
    count = min(num_matvecs // 2, A.size)
    basis = Basis(A, count, seed, "krylov")
    Z = A.like.new_empty(count, A.local_size)
    R = torch.zeros(count, count, dtype=torch.float64, device="cpu")
    whole = A.like.new_zeros(A.local_size)
    for start, stop in blocks(0, count, A.block_size):
        basis.rows[start:stop] = A(A.rademacher(range(start, stop), seed, "estimate")).T
        h, top, width = basis.orthonormalise(stop - start)
        R[:start, start:stop], R[start : start + width, start:stop] = h, top
        basis.size += width
    for start, stop in blocks(0, count, A.block_size):
        Q = basis.block(start, stop)
        Z[start:stop] = A(Q).T
        whole += (Q * Z[start:stop].T).sum(1)
    moments.known = moments.known + whole
    if count == A.size:
        moments.add(torch.zeros_like(whole)[:, None])
        return
    S = left_null_columns(R, A.eps)
    along = (S * R).sum(0).to(A.like)
    for start, stop in blocks(0, count, A.block_size):
        omega, part = (
            A.rademacher(range(start, stop), seed, "estimate"),
            S[:, start:stop].to(A.like),
        )
        moments.add((basis.columns @ part) * (omega * along[start:stop] - Z.T @ part))


def _xnysdiag(A: Operand, moments: Moments, count: int, seed: int, _: float | None) -> None:
    """The diagonal of the Nyström approximation without vector i, and that of what it leaves.

    With G and the shift as in XNysTrace and B = Y G, that is
    diag(B Yᵀ) - b_i ∘ b_i / g_ii and ω_i ∘ b_i / g_ii, for b_i = B e_i.
    """
    count = min(count, A.size)
    omega, Y = A.like.new_empty(2, count, A.local_size)
    for start, stop in blocks(0, count, A.block_size):
        block = A.rademacher(range(start, stop), seed, "estimate")
        omega[start:stop], Y[start:stop] = block.T, A(block).T
    inner = A.backend.inner
    G, shift = shifted_inverse(
        inner(omega.T, Y.T), inner(omega.T, omega.T), float(A.backend.dots(Y.T, Y.T).sum()), A
    )
    if not shift:
        moments.add(Y[:1].T)
        return
    whole = A.like.new_full((A.local_size,), -shift)
    Y.add_(omega, alpha=shift)
    g = torch.diagonal(G).to(A.like)
    for start, stop in blocks(0, count, A.block_size):
        B = Y.T @ G[:, start:stop].to(A.like)
        whole += (B * Y[start:stop].T).sum(1)
        moments.add(B * (omega[start:stop].T - B) / g[start:stop])
    moments.known = moments.known + whole
