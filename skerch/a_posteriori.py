"""How good an approximation is, judged after the fact from a few held-out Gaussian probes.

The trace and the norm of all of H follow, too.

An approximation Ĥ = Σ_j λ_j w_j w_jᵀ of H, computed without the probes g_1, …, g_q, has the
residual E = H - Ĥ, and E[‖E g‖²] = ‖E‖_F². Written for eigenpairs; for A ≈ Σ_j σ_j u_j v_jᵀ read
a = Vᵀg, c = UᵀAg.

Tropp, Yurtsever, Udell and Cevher, "Streaming low-rank matrix approximation with an application to
scientific simulation", SIAM J. Sci. Comput. 41(4), 2019 (TYUC), section 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.special import gammainc, gammaincinv, lambertw
from torch import Tensor

from skerch.errors import ShapeError, SkerchError
from skerch.estimate import Estimate

SQUARE_ROUNDING = 1e-10  # error of e² over ‖H‖², as e² is a difference of terms of that size


def residuals(values: Tensor, a: Tensor, c: Tensor, probe_sq_norms: Tensor) -> Tensor:
    """Estimates of ‖H - H_r‖_F for r = 0, …, k, where H_r is the sum of the first r terms of Ĥ.

    values: λ, (k,).
    a: Wᵀg for each probe, (k, q).
    c: WᵀHg for each probe, (k, q); W has orthonormal columns.
    probe_sq_norms: ‖Hg‖² for each probe, (q,).

    Returns (k + 1,), float64; entry 0 estimates ‖H‖_F, entry k the residual of the whole Ĥ. Their
    squares (before negative ones are set to 0) are unbiased:

        ‖E‖²       ≈ mean ‖Eg‖²,  ‖Eg‖² = ‖Hg‖² - ‖c‖² + ‖c - λ∘a‖²,
        ‖H - H_r‖² ≈ mean ‖Eg‖² + Σ_{j>r} [λ_j² + 2 λ_j mean a_j (c_j - λ_j a_j)].

    The first line is TYUC's estimator (section 6.2), Eg taken outside and inside W's range. In the
    second, H - H_r = E + Σ_{j>r} λ_j w_j w_jᵀ: only E and its w_jᵀE w_j are estimated, the λ_j²
    are known. That is what makes it so much better than mean ‖(H - H_r)g‖² when E is small.

    Raises `ShapeError` if the shapes do not fit or there is no probe.
    """
    values, a, c, sq_norms = (t.double() for t in (values, a, c, probe_sq_norms))
    k, q = len(values), len(sq_norms)
    if a.shape != (k, q) or c.shape != (k, q) or q == 0:
        raise ShapeError(
            f"{k} values and {q} probes need a and c of shape ({k}, {q}) and at least one probe; "
            f"they have {tuple(a.shape)} and {tuple(c.shape)}."
        )
    inside = c - values[:, None] * a
    whole = (sq_norms - c.square().sum(0) + inside.square().sum(0)).mean()
    terms = values.square() + 2 * values * (a * inside).mean(1)
    return (whole + _tail_sums(terms)).clamp(min=0).sqrt()


def pair_residuals(values: Tensor, a: Tensor, c: Tensor) -> Tensor:
    """Estimates of ‖H w_i - λ_i w_i‖, (k,), from the same λ, a and c as `residuals`.

    As g is Gaussian, c_i - λ_i a_i = (H w_i - λ_i w_i)ᵀg has the residual's norm for its deviation:
    its mean square over the probes is an unbiased estimate of the norm's square.
    """
    values, a, c = (t.double() for t in (values, a, c))
    return (c - values[:, None] * a).square().mean(1).sqrt()


def pair_bounds(
    pair_residual: Tensor, num_probes: int, rounding: float = 0.0, *, confidence: float = 0.95
) -> Tensor:
    """Upper bounds of ρ_i = ‖H w_i - λ_i w_i‖, (k,), each with `confidence`.

    pair_residual: as from `pair_residuals`. rounding: what the products' own may add, absolute.

    They follow from the χ² law of `num_probes` squares, with half of 1 - confidence, as the same
    probes chose the filter. Raises `SkerchError` for a confidence outside (0, 1) or no probe.
    """
    _check_probes(num_probes)
    _check_confidence(confidence)
    least = 2 * float(gammaincinv(num_probes / 2, (1 - confidence) / 2))  # of χ²
    return pair_residual.double() * math.sqrt(num_probes / least) + rounding


def eigenvalue_bounds(
    values: Tensor, rho: Tensor, unknown: Tensor, rounding: float = 0.0
) -> Tensor:
    """How far an eigenvalue of H may be from each λ_i, (k,), for the pairs' residuals ρ_i.

    values: λ, (k,), by decreasing magnitude. rho: bounds of ρ, (k,), as from `pair_bounds`.
    unknown: ‖u_i‖, (k,), for the part u_i of w_i outside the space V on which the approximation
    is exact, VᵀĤ = VᵀH; 1 where there is none. rounding: of the products, absolute.

    One lies within ρ_i (Parlett, "The Symmetric Eigenvalue Problem", 1998, theorem 4.5.1). w_i's
    Rayleigh quotient θ_i has |θ_i - λ_i| = |u_iᵀ(H - Ĥ)u_i| ≤ ‖u_i‖ ρ_i, and is within ρ_i² / γ_i
    of an eigenvalue where γ_i is the distance to all others (theorem 11.7.1): to λ_j ± ρ_j of the
    other pairs, and to ± |λ_k|, within which what is not among the k is taken to lie. The bound is
    the lesser of ρ_i and ‖u_i‖ ρ_i + ρ_i² / γ_i, the latter with the rounding.
    """
    if not len(values):
        return rho
    values, order = values.double(), values.double().argsort()
    distances, reach = values[order].diff(), rho[order]
    end = values.new_full((1,), math.inf)
    above, below = torch.cat([distances - reach[1:], end]), torch.cat([end, distances - reach[:-1]])
    to_others = torch.minimum(above, below)[order.argsort()]
    gap = torch.minimum(to_others, values.abs() - values[-1].abs()) - rho
    sharp = unknown * rho + rho.square() / gap.clamp(min=torch.finfo(gap.dtype).tiny)
    return torch.minimum(rho, sharp + rounding)


def eigenspace_sines(values: Tensor, rho: Tensor, bound: Tensor, beyond: float) -> Tensor:
    """Bounds of ‖(I - V_j V_jᵀ) w_i‖ for all i ≤ j ≤ k, (k, k); V_j (N, j) spans H's top-j space.

    values: λ, (k,), by decreasing magnitude. rho, bound: (k,), as from `pair_bounds` and
    `eigenvalue_bounds`. beyond: other eigenvalues than these are taken to lie within ± this.

    The bound is ρ_i / d_ij, with d_ij the distance from λ_i to the eigenvalues outside, which are
    λ_l ± bound_l for l > j and ± beyond: with V the eigenvectors outside and L their eigenvalues,
    (L - λ_i I) Vᵀw_i = Vᵀ(H w_i - λ_i w_i). This is the sin Θ theorem (Davis and Kahan, "The
    rotation of eigenvectors by a perturbation III", SIAM J. Numer. Anal. 7(1), 1970), by pairs.

    Column j is NaN where the j-th gap is not resolved, as the least |λ_i| - bound_i for i ≤ j is no
    more than the largest magnitude that an eigenvalue outside may have. Entries i > j are 0. An
    eigenvalue that was missed altogether, such as a copy of a multiple one where products were few,
    is not seen by this.
    """
    if not len(values):
        return values.new_zeros(0, 0)
    values = values.double()
    size, rest = values.abs(), values.new_full((1,), beyond)
    inside = (size - bound).cummin(0).values
    outside = torch.cat([(size + bound)[1:], rest]).maximum(rest).flip(0).cummax(0).values.flip(0)
    to_pairs = (values[:, None] - values).abs() - bound
    to_pairs = torch.cat([to_pairs[:, 1:], to_pairs.new_full((len(values), 1), math.inf)], dim=1)
    nearest = to_pairs.flip(1).cummin(1).values.flip(1).minimum((size - beyond)[:, None])
    sines = (rho[:, None] / nearest).clamp(max=1)
    return torch.where(inside > outside, sines, math.nan).triu()


def trace(
    values: Tensor,
    a: Tensor,
    quadratic: Tensor,
    residual: Tensor,
    rounding: float = 0.0,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """The trace of H, deflated by Ĥ, from gᵀHg for each probe: `quadratic`, (q,).

        tr H = Σ λ_i + tr E ≈ Σ λ_i + mean (gᵀHg - Σ λ_i a_i²).

    values and a as for `residuals`, residual as from it; rounding: of the products, absolute. With
    no pairs this is the estimator of Hutchinson ("A stochastic estimator of the trace", Commun.
    Stat. Simul. Comput. 18(3), 1989) for Gaussian probes; that of E alone is the idea of Hutch++
    (Meyer, Musco, Musco and Woodruff, SOSA 2021), at no further product. It is unbiased, with the
    standard error (2/q)^½ ‖E‖_F, and e, the last entry of `residual`, estimates ‖E‖_F.

    The error is κ e, such that it holds with `confidence` for E of rank one. Then the estimate of
    tr E is Y tr E and e² = Y ‖E‖_F², for Y of the law χ²_q / q, so that κ solves
    P{|Y - 1| ≤ κ Y^½} = confidence. Any other E is easier (tried on many, for 2 to 30 probes),
    while Student's t over the probes holds in 81 to 91 of 100 for rank one, as χ² is skewed.

    Raises `SkerchError` for a confidence outside (0, 1) or no probe.
    """
    _check_confidence(confidence)
    _check_probes(q := len(quadratic))
    values = values.double()
    of_error = quadratic.double() - values @ a.double().square()

    def share(kappa: float) -> float:
        root = math.sqrt(kappa**2 + 4)
        return _within(q, ((root - kappa) / 2) ** 2, ((root + kappa) / 2) ** 2)

    square = float(residual[-1]) ** 2 + SQUARE_ROUNDING * float(residual[0]) ** 2
    error = _reaching((1 + confidence) / 2, share) * math.sqrt(square) + rounding
    return Estimate(float(values.sum() + of_error.mean()), error)


def norm(
    values: Tensor,
    a: Tensor,
    products: Tensor,
    residual: Tensor,
    rounding: float = 0.0,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """‖H‖_F, which is the first entry of `residual`, with its error.

    products: (Hg)ᵀ(Hg') of all pairs of probes, (q, q); the rest as for `trace`. ‖H‖_F² is the
    trace of H², deflated by Ĥ². With S = H² - Ĥ² and F = ZᵀSZ (q, q), for the probes Z,

        ‖H‖_F² = Σ λ_i² + tr S,   F = (HZ)ᵀ(HZ) - aᵀ diag(λ²) a,   tr S ≈ mean F_ii,

    and s² = ‖F - mean F_ii I‖_F² / (q (q - 1)) estimates (1 + 2/q) ‖S‖_F²: all products of two
    probes tell of the error, not only the q squares. The error of tr S is κ s. For S of rank one
    the estimate is Y tr S and s is Y |tr S|, so that κ solves P{|Y - 1| ≤ κ Y} =
    (1 + confidence) / 2; any other S is easier, as for `trace`.

    Raises `SkerchError` for a confidence outside (0, 1) or fewer than two probes.
    """
    _check_confidence(confidence)
    q = len(products)
    if q < 2:
        raise SkerchError(f"{q} probes say nothing of their scatter; use at least 2, usually 30.")

    def share(kappa: float) -> float:
        return _within(q, 1 / (1 + kappa), 1 / max(1 - kappa, 1e-300))

    F = products.double() - (values.double().square() * a.double().T) @ a.double()
    F.diagonal().sub_(F.diagonal().mean().clone())
    value = float(residual[0])
    scatter = float(torch.linalg.norm(F)) / math.sqrt(q * (q - 1))
    off = _reaching((1 + confidence) / 2, share) * scatter + SQUARE_ROUNDING * value**2
    return Estimate(value, value - math.sqrt(max(value**2 - off, 0.0)) + rounding)


def probability_bounds(num_probes: int, error: float) -> tuple[float, float]:
    """Bounds on the probability that q probes misjudge a squared residual by a factor 1 ∓ ε.

    For e² = mean ‖Eg‖² over q = `num_probes` real Gaussian probes and ε = `error` > 0, whatever
    E is (TYUC 2019, section 6.4, with β = 1):

        P{e² ≤ (1 - ε) ‖E‖_F²} ≤ [e^ε (1 - ε)]^(q/2)     (0 for ε ≥ 1),
        P{e² ≥ (1 + ε) ‖E‖_F²} ≤ [e^-ε (1 + ε)]^(q/2).

    These are Chernoff's bounds for χ²_q / q, the law of e²/‖E‖_F² when E has rank one, the worst
    case. Returns (lower, upper). Raises `SkerchError` for q < 1 or ε ≤ 0.
    """
    _check_probes(num_probes)
    if not error > 0:
        raise SkerchError(f"The relative error is {error}; it must be positive, e.g. 0.5.")
    upper = math.exp(num_probes / 2 * (math.log1p(error) - error))
    if error >= 1:
        return 0.0, upper
    return math.exp(num_probes / 2 * (math.log1p(-error) + error)), upper


def interval(
    values: Tensor, residual: Tensor, num_probes: int, *, confidence: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Bounds between which ‖H - H_r‖_F lies for all r = 0, …, k at once, with `confidence`.

    values: λ, (k,), sorted by decreasing magnitude. residual: (k + 1,), as from `residuals`.

    At rank k both tails of `probability_bounds` get half of 1 - confidence; solving
    [e^(1 - x) x]^(q/2) = (1 - confidence)/2 for x on both sides of 1, by Lambert's W, gives
    e_lo = e/√x_hi ≤ ‖E‖_F ≤ e/√x_lo = e_hi. Below k, ‖H - H_r‖_F is within ‖E‖_F of the
    approximation's own tail τ_r = (Σ_{j>r} λ_j²)^½, so it lies between
    max(τ_r - e_hi, e_lo - τ_r, 0) and τ_r + e_hi. For either end e² is first moved outwards by
    1e-10 ‖H‖², which covers the rounding: a residual below 1e-5 ‖H‖ is not told from zero.

    Returns (lower, upper), each (k + 1,), float64. Raises `SkerchError` for a confidence outside
    (0, 1) or no probe, `ShapeError` if the lengths do not fit.
    """
    _check_probes(num_probes)
    _check_confidence(confidence)
    _check_lengths(values, residual)
    tail = _tail_sums(values.double().square()).sqrt()
    square, rounding = (
        residual[-1].double().square(),
        SQUARE_ROUNDING * residual[0].double().square(),
    )
    rate = 2 / num_probes * math.log(2 / (1 - confidence))
    least = ((square - rounding).clamp(min=0) / -lambertw(-math.exp(-1 - rate), -1).real).sqrt()
    most = ((square + rounding) / -lambertw(-math.exp(-1 - rate), 0).real).sqrt()
    return torch.maximum(tail - most, least - tail).clamp(min=0), tail + most


def scree_bounds(values: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates from below and above of the scree (τ_r(H) / ‖H‖_F)², r = 0, …, k.

    τ_r(H) is H's best rank-r residual, the tail energy of its spectrum (TYUC 2019, section 6.5):

        lower_r = (τ_r(Ĥ) / ‖H‖)²,   upper_r = ((τ_r(Ĥ) + e) / ‖H‖)²,

    with ‖H‖ and e = ‖H - Ĥ‖_F the first and last entries of `residual`. The upper one is a bound
    up to the estimates' own error; the lower one as far as Ĥ's tails do not exceed H's, as those
    of a projection do not. They are not clipped to 1.

    values: λ, (k,), sorted by decreasing magnitude. residual: (k + 1,), as from `residuals`.
    Returns (lower, upper), each (k + 1,), float64; 0 if H is. Raises `ShapeError` if the lengths
    do not fit.
    """
    _check_lengths(values, residual)
    norm, error = residual[0].double(), residual[-1].double()
    tail = _tail_sums(values.double().square()).sqrt()
    if norm == 0:
        return torch.zeros_like(tail), torch.zeros_like(tail)
    return (tail / norm).square(), ((tail + error) / norm).square()


def _tail_sums(terms: Tensor) -> Tensor:
    """Σ_{j>r} terms_j for r = 0, …, k: (k,) to (k + 1,), the small ones added first."""
    return torch.cat([terms.new_zeros(1), terms.flip(0).cumsum(0)]).flip(0)


def _within(num_probes: int, low: float, high: float) -> float:
    """The probability that χ²_q / q lies between two values."""
    half = num_probes / 2
    return float(gammainc(half, half * high) - gammainc(half, half * low))


def _reaching(probability: float, share: Callable[[float], float]) -> float:
    """The κ at which an increasing function of it reaches a probability, by bisection."""
    low, high = 0.0, 1.0
    while share(high) < probability:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) < probability else (low, middle)
    return high


def _check_probes(num_probes: int) -> None:
    if num_probes < 1:
        raise SkerchError(f"{num_probes} probes say nothing; use at least 1, usually 30.")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise SkerchError(f"confidence is {confidence}; it must lie between 0 and 1, e.g. 0.95.")


def _check_lengths(values: Tensor, residual: Tensor) -> None:
    if values.ndim != 1 or residual.shape != (len(values) + 1,):
        raise ShapeError(
            f"Values of shape {tuple(values.shape)} and residuals of shape "
            f"{tuple(residual.shape)} do not fit; k values have k + 1 residuals."
        )
