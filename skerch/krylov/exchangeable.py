"""XTrace and XNysTrace: every test vector serves the sketch and the estimate.

Each of s test vectors gives an estimate with the sketch of the others; the result is their mean
(Epperly, Tropp and Webber, "XTrace: making the most of every sample in stochastic trace
estimation", SIAM J. Matrix Anal. Appl. 45(1), 2024). Test vectors have the norm √n, and the part
that a sketch leaves of them is normalised ("resphering").

The s estimates t_i depend on each other, so that their scatter S² alone, S² / s, understates the
variance of the mean: that interval held in 83 of 100. With t_{j|-ij} the estimate of j whose sketch
lacks vector i, too, the variance is

    Var t̄ = E S² / s + C,    C = E (t_j - t_{j|-ij}) (t_i - t_{i|-ij}),

exactly: t_i has the mean tr A given all other vectors, so every other term of the covariance of t_i
and t_j vanishes. The means over i ≠ j are its unbiased estimate, from small matrices and at no
product. Student's t of s / 3 degrees of freedom makes an interval of it: fewer
than s - 1, as pairs share vectors and the estimates' tails are heavy.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.stats import t as students_t
from torch import Tensor

from skerch.errors import SkerchError
from skerch.estimate import Estimate
from skerch.krylov.backend import LinAlgBackend
from skerch.krylov.basis import Basis
from skerch.krylov.operand import Operand
from skerch.krylov.results import TraceResult

LEAST_SHIFT = 1e-8  # of ‖A‖_F, as the approximation is computed from Gram matrices
FIRST = 8  # test vectors, before the tolerance is looked at; then twice as many each time


def xtrace(
    operator: Any,
    *,
    num_matvecs: int = 100,
    seed: int | None = None,
    tol: float | None = None,
    deflate: Any = None,
    block_size: int | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> TraceResult:
    """The trace of a symmetric operator from num_matvecs / 2 test vectors; as for `trace`.

    In memory is an orthonormal basis of their products.
    """
    A = Operand(operator, "xtrace", backend, deflate=deflate, block_size=block_size)
    if num_matvecs < 2:
        raise SkerchError(f"xtrace takes at least num_matvecs=2, not {num_matvecs}.")
    count, seed = min(num_matvecs // 2, A.size), A.backend.seed(seed)
    basis = Basis(A, count, seed, "krylov")
    R, H, W = torch.zeros(3, count, count, dtype=torch.float64, device="cpu")
    with A.frozen():
        for s in stages(count, tol):
            for start, stop in blocks(basis.size, s, A.block_size):
                basis.rows[start:stop] = A(sphere(A, start, stop, seed)).T
                h, top, width = basis.orthonormalise(stop - start)
                R[:start, start:stop], R[start : start + width, start:stop] = h, top
                basis.size += width
                Q = basis.block(start, stop)
                H[:stop, start:stop] = A.backend.inner(basis.columns, A(Q))
                H[start:stop, :start] = H[:start, start:stop].T
            for start, stop in blocks(0, s, A.block_size):
                W[:s, start:stop] = A.backend.inner(basis.columns, sphere(A, start, stop, seed))
            found = _result(A, *leave_out_of_range(W[:s, :s], R[:s, :s], H[:s, :s], A.size, A.eps))
            if within(found.interval, tol):
                break
    return found


def xnystrace(
    operator: Any,
    *,
    num_matvecs: int = 100,
    seed: int | None = None,
    tol: float | None = None,
    deflate: Any = None,
    block_size: int | None = None,
    backend: LinAlgBackend[Tensor] | None = None,
) -> TraceResult:
    """The trace of a positive semidefinite operator from num_matvecs test vectors; as for `trace`.

    There are at most 9 n / 10 test vectors, or n, by which the trace is exact. In memory are these
    and their products. What `deflate` leaves of the operator has to be
    semidefinite, too.

    Raises SkerchError where the products show that the operator is not semidefinite.
    """
    A = Operand(operator, "xnystrace", backend, deflate=deflate, block_size=block_size)
    if num_matvecs < 1:
        raise SkerchError(f"num_matvecs must be at least 1, not {num_matvecs}.")
    seed = A.backend.seed(seed)
    most = max(1, A.size * 9 // 10)  # beyond, leaving out one of them tells little of the error
    count = A.size if num_matvecs >= A.size else min(num_matvecs, most)
    omega, Y = A.like.new_empty(2, count, A.local_size)
    K, M, J = torch.zeros(3, count, count, dtype=torch.float64, device="cpu")
    done = 0
    with A.frozen():
        for s in stages(count, tol):
            for start, stop in blocks(done, s, A.block_size):
                block = sphere(A, start, stop, seed)
                omega[start:stop], Y[start:stop] = block.T, A(block).T
                for square, left, right in ((K, Y, Y), (M, omega, Y), (J, omega, omega)):
                    square[:stop, start:stop] = A.backend.inner(left[:stop].T, right[start:stop].T)
                    square[start:stop, :start] = square[:start, start:stop].T
            done = s
            found = _result(A, *leave_out_of_nystrom(K[:s, :s], M[:s, :s], J[:s, :s], A))
            if within(found.interval, tol):
                break
    return found


def leave_out_of_range(
    W: Tensor, R: Tensor, H: Tensor, size: int, eps: float
) -> tuple[Tensor, Tensor, float]:
    """XTrace's estimates t_j, those without vector i, (i, j), and ‖H‖_F, from small matrices.

    For Y = AΩ = QR: W = QᵀΩ, H = QᵀAQ. Without vector i, Y's range loses the direction of Q s_i,
    with s_i the i-th column of R⁻ᵀ; without i and j, those of Q s_i and Q s_j.
    """
    s, trace_H = len(R), float(H.trace())
    whole = float(torch.linalg.norm(H))
    if s == size:  # Q is square
        exact = torch.full((s, s), trace_H, dtype=torch.float64, device="cpu")
        return exact[0], exact, whole
    S = left_null_columns(R, eps)
    a, F, C, M, L = S.T @ W, S.T @ R, S.T @ S, S.T @ H @ S, S.T @ H @ W
    x, q, sq_norms = (R * W).sum(0), (W * (H @ W)).sum(0), W.square().sum(0)
    aj, fj, mj, lj = (torch.diagonal(square) for square in (a, F, M, L))

    def estimate(lost: Tensor, inside: Tensor, quadratic: Tensor, left_out: int) -> Tensor:
        rest = (size - s + left_out) / (size - inside).clamp(min=1e-300)
        return trace_H - lost + rest * quadratic

    quadratic = x - 2 * (x - aj * fj) + q - 2 * aj * lj + aj**2 * mj
    ones = estimate(mj, sq_norms - aj**2, quadratic, 1)
    det = (1 - C**2).clamp(min=eps)  # of the Gram matrix of s_i and s_j
    alpha, beta = (a - C * aj) / det, (aj - C * a) / det  # w_j less α s_i + β s_j is orthogonal
    quadratic = x - 2 * (x - alpha * F - beta * fj) + q - 2 * (alpha * L + beta * lj)
    quadratic += alpha**2 * mj[:, None] + 2 * alpha * beta * M + beta**2 * mj
    lost = (mj[:, None] + mj - 2 * C * M) / det
    twos = estimate(lost, sq_norms - alpha * a - beta * aj, quadratic, 2)
    return ones, twos, whole * max(1.0, LEAST_SHIFT / (10 * eps))


def leave_out_of_nystrom(
    K: Tensor, M: Tensor, J: Tensor, A: Operand
) -> tuple[Tensor, Tensor, float]:
    """XNysTrace's estimates, as for `leave_out_of_range`, from K = YᵀY, M = ΩᵀY and J = ΩᵀΩ.

    For Y = AΩ and G = M⁻¹ the approximation is Y G Yᵀ. Without vectors I it is
    Y (G - G_I (G_II)⁻¹ G_Iᵀ) Yᵀ, and leaves ((G_II)⁻¹)_jj of ω_jᵀAω_j. A is shifted by rounding.
    """
    s, size = len(K), A.size
    whole = float(K.trace().clamp(min=0))
    if s == size:  # tr A = tr Ω⁻¹AΩ
        inverse = torch.linalg.inv(J)
        exact = (inverse @ M).trace().expand(s, s).clone()
        of_inverse = 1 + size * torch.finfo(torch.float64).eps / A.eps
        return exact[0], exact, math.sqrt(whole * float(inverse.trace())) * of_inverse
    G, shift = shifted_inverse(M, J, whole, A)
    if not shift:
        return M.new_zeros(s), M.new_zeros(s, s), 0.0
    K, inverse = K + shift * (M + M.T) + shift**2 * J, torch.linalg.inv(J)
    B = G @ K @ G
    g, o, b = (torch.diagonal(square) for square in (G, inverse, B))
    known = float((G * K).sum()) - shift * size
    ones = known - b / g + (size - s + 1) * o / g
    det, of_omega = g[:, None] * g - G**2, o[:, None] * o - inverse**2
    det, of_omega = det.clamp(min=1e-300), of_omega.clamp(min=0)
    lost = (g[:, None] * b + g * b[:, None] - 2 * G * B) / det
    part = of_omega / o[:, None]  # 1 / ((J⁻¹)_II⁻¹)_jj
    twos = known - lost + (size - s + 2) * part * g[:, None] / det
    return ones, twos, math.sqrt(whole / s) + shift / A.eps


def left_null_columns(R: Tensor, eps: float) -> Tensor:
    """S, with unit columns s_i orthogonal to all columns of R but the i-th: those of R⁻ᵀ."""
    U, values, Vh = torch.linalg.svd(R)
    S: Tensor = U @ (Vh / values.clamp(min=max(eps * float(values[0]), 1e-300))[:, None])
    return S / torch.linalg.norm(S, dim=0)  # type: ignore[no-any-return]


def shifted_inverse(M: Tensor, J: Tensor, square: float, A: Operand) -> tuple[Tensor, float]:
    """(M + νJ)⁻¹ and the shift ν, for M = ΩᵀAΩ, J = ΩᵀΩ and square = ‖AΩ‖_F²; ν is 0 for A = 0.

    Raises SkerchError where M is not positive semidefinite.
    """
    shift = max(10 * A.eps, LEAST_SHIFT) * math.sqrt(square / len(M))  # times the estimate of ‖A‖_F
    shift += 10 * A.eps * float(torch.linalg.norm(A.values))  # of the pairs that are deflated
    factor, failed = torch.linalg.cholesky_ex((M + M.T) / 2 + shift * J)
    if int(failed) and shift:
        raise SkerchError(
            f"Nyström methods need a positive semidefinite operator, and {A.operator!r} is not, or "
            "what deflate leaves of it is not; xtrace and xdiag take any symmetric one."
        )
    return (torch.cholesky_inverse(factor) if shift else M), shift


def _result(A: Operand, ones: Tensor, twos: Tensor, norm: float) -> TraceResult:
    """The mean estimate with its error."""
    s, known = len(ones), A.known_trace
    value = float(ones.mean()) + known
    stderr = 0.0 if s == A.size else math.inf  # of all vectors that there are, and of one
    if 1 < s < A.size:
        gains = (ones - twos).fill_diagonal_(0)
        shared = float((gains * gains.T).sum()) / (s * (s - 1))
        stderr = math.sqrt(float(ones.var()) / s + max(shared, 0.0))
    rounding = 10 * A.eps * (norm + abs(value) + abs(known))
    error = float(students_t.ppf(0.975, s / 3)) * stderr + rounding
    samples = ones.to(A.like)
    return TraceResult(value, stderr, samples, Estimate(value, error), A.products)


def sphere(A: Operand, start: int, stop: int, seed: int) -> Tensor:
    """Test vectors [start, stop), as columns, uniform on the sphere of radius √n."""
    G = A.randn(range(start, stop), seed, "estimate")
    return G.mul_((A.size**0.5 / A.backend.dots(G, G).sqrt()).to(G))


def stages(count: int, tol: float | None) -> list[int]:
    """How many test vectors there are in the end, or whenever a tolerance is looked at."""
    sizes = [count]
    while tol is not None and sizes[-1] > 2 * FIRST:
        sizes.append(-(-sizes[-1] // 2))
    return sizes[::-1]


def blocks(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """[start, stop) in blocks."""
    return [(a, min(a + step, stop)) for a in range(start, stop, step)]


def within(interval: Estimate, tol: float | None) -> bool:
    """Whether an interval is within ± tol |estimate|."""
    return tol is not None and interval.error <= tol * abs(interval.value)
