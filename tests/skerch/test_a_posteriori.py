"""Estimates against dense residuals, bounds against the χ² law that they bound."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from skerch.a_posteriori import (
    eigenvalue_bounds,
    interval,
    norm,
    pair_bounds,
    pair_residuals,
    probability_bounds,
    residuals,
    scree_bounds,
    trace,
)
from skerch.decompositions.seigh import seigh
from skerch.errors import ShapeError, SkerchError
from skerch.estimate import Estimate, extremes
from skerch.linops import aslinearoperator
from skerch.synthmat import general, polynomial_decay, symmetric

N, K = 80, 12


@pytest.fixture(scope="module")
def approximation():
    """A dense H, orthonormal W near its top eigenvectors, and values off the Rayleigh quotients."""
    H, _ = symmetric(polynomial_decay(N, 3, 1.0), seed=0, signs="alternate")
    generator = torch.Generator().manual_seed(0)
    top = torch.linalg.eigh(H)
    order = top.eigenvalues.abs().argsort(descending=True)[:K]
    noise = torch.randn(N, K, generator=generator, dtype=torch.float64)
    W = torch.linalg.qr(top.eigenvectors[:, order] + 0.03 * noise).Q
    return H, W, 0.97 * (W * (H @ W)).sum(0)


def _projection(H):
    """The K eigenpairs of largest magnitude of QᵀHQ, for Q a sketch's range."""
    Q = torch.linalg.qr(H @ _gaussian(N, 2 * K, 999)).Q
    small = torch.linalg.eigh(Q.T @ H @ Q)
    order = small.eigenvalues.abs().argsort(descending=True)[:K]
    return Q @ small.eigenvectors[:, order], small.eigenvalues[order]


def _true_residuals(A, U, values, V):
    partial = [A - (U[:, :r] * values[:r]) @ V[:, :r].T for r in range(len(values) + 1)]
    return torch.stack([matrix.norm() for matrix in partial])


def _estimate(H, W, values, probes):
    return residuals(values, W.T @ probes, W.T @ (H @ probes), (H @ probes).square().sum(0))


def _gaussian(n, q, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, q, generator=generator, dtype=torch.float64)


def test_expectation_of_the_estimate_is_the_residual_at_every_rank(approximation):
    """Probes √n e_1 … √n e_n have the mean ggᵀ = 1 of Gaussian ones, so no chance is left."""
    H, W, values = approximation
    probes = math.sqrt(N) * torch.eye(N, dtype=torch.float64)
    estimate = _estimate(H, W, values, probes)
    torch.testing.assert_close(estimate, _true_residuals(H, W, values, W), rtol=1e-12, atol=1e-12)


def test_expectation_holds_for_singular_triplets_of_a_rectangular_matrix():
    A, _ = general(polynomial_decay(20, 3, 1.0), (30, 20), seed=0)
    U = torch.linalg.qr(A @ _gaussian(20, 6, 1)).Q
    V = torch.linalg.qr(A.T @ U).Q
    values = (U * (A @ V)).sum(0)
    probes = math.sqrt(20) * torch.eye(20, dtype=torch.float64)
    estimate = residuals(values, V.T @ probes, U.T @ (A @ probes), (A @ probes).square().sum(0))
    torch.testing.assert_close(estimate, _true_residuals(A, U, values, V), rtol=1e-12, atol=1e-12)


def test_thirty_probes_beat_the_plain_estimator_many_times_over(approximation):
    H = approximation[0]
    W, values = _projection(H)
    truth = _true_residuals(H, W, values, W)
    ours, plain = [], []
    for seed in range(200):
        probes = _gaussian(N, 30, seed)
        ours.append(_estimate(H, W, values, probes) / truth - 1)
        partial = [H - (W[:, :r] * values[:r]) @ W[:, :r].T for r in range(K + 1)]
        plain.append(
            torch.stack([(M @ probes).square().sum(0).mean().sqrt() for M in partial]) / truth - 1
        )
    rms_ours, rms_plain = (torch.stack(e).square().mean(0).sqrt() for e in (ours, plain))
    assert rms_plain[0] > 0.05
    assert rms_ours[0] < rms_plain[0] / 5
    assert (rms_ours <= 1.001 * rms_plain).all()


def test_a_products_error_enters_squared():
    """Single-precision products of an operator of exact rank do not look like a residual."""
    H, values = symmetric(polynomial_decay(K, 4, 1.0), seed=2)
    eigen = torch.linalg.eigh(H)
    probes = _gaussian(K, 30, 0)
    a = eigen.eigenvectors.T @ probes * (1 + 1e-7 * _gaussian(K, 30, 1))
    c = eigen.eigenvectors.T @ (H @ probes)
    estimate = residuals(eigen.eigenvalues, a, c, (H @ probes).square().sum(0))
    assert estimate[-1] < 3e-7 * values.norm()


def test_probability_bounds_are_the_papers_and_bound_the_worst_case():
    np.testing.assert_allclose(
        probability_bounds(30, 0.5), [(math.e**0.5 * 0.5) ** 15, (math.e**-0.5 * 1.5) ** 15]
    )
    for q in (1, 2, 10, 30, 200):
        for error in (0.01, 0.1, 0.5, 0.9, 1.0, 3.0):
            lower, upper = probability_bounds(q, error)
            for bound, exact in [
                (lower, chi2.cdf(q * (1 - error), q)),
                (upper, chi2.sf(q * (1 + error), q)),
            ]:
                assert exact <= bound <= 1
                if bound > 0:
                    # Chernoff loses a polynomial factor at most
                    assert math.log(bound) < 0.5 * math.log(exact) + 1


def test_probability_bounds_hold_for_residuals_of_several_ranks():
    rng = np.random.default_rng(0)
    for weights in (np.array([1.0]), np.array([0.6, 0.3, 0.1]), np.full(20, 0.05)):
        ratio = rng.chisquare(1, (100_000, 10, len(weights))).mean(1) @ weights
        for error in (0.3, 0.6):
            lower, upper = probability_bounds(10, error)
            assert (ratio <= 1 - error).mean() <= lower
            assert (ratio >= 1 + error).mean() <= upper


def test_interval_inverts_the_probability_bounds():
    empty = torch.empty(0)
    low, high = interval(empty, torch.tensor([2.0]), 30, confidence=0.9)
    np.testing.assert_allclose(probability_bounds(30, 1 - (2.0 / high.item()) ** 2)[0], 0.05)
    np.testing.assert_allclose(probability_bounds(30, (2.0 / low.item()) ** 2 - 1)[1], 0.05)


@pytest.mark.parametrize("residual", ["spread", "of rank one", "overestimate"])
def test_interval_holds_at_all_ranks_at_once_as_often_as_it_says(approximation, residual):
    """The last two are the cases in which its upper and its lower end are met."""
    H, W, values = approximation
    if residual == "of rank one":
        direction = torch.linalg.qr(torch.cat([W, _gaussian(N, 1, 5)], dim=1)).Q[:, -1]
        H = (W * values) @ W.T + 0.3 * torch.outer(direction, direction)
    elif residual == "overestimate":
        W, values = W[:, :1], values[:1]
        H = 0.9 * (W * values) @ W.T
    truth = _true_residuals(H, W, values, W)
    hits = 0
    for seed in range(300):
        estimate = _estimate(H, W, values, _gaussian(N, 10, seed))
        lower, upper = interval(values, estimate, 10, confidence=0.8)
        hits += bool(((lower <= truth) & (truth <= upper)).all())
    assert hits >= 0.8 * 300
    assert residual == "spread" or hits < 300


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
@pytest.mark.parametrize(("decay", "outer"), [(1.0, 20), (0.5, 50)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interval_holds_residuals_that_rounding_hides(dtype, decay, outer, rounds):
    H, _ = symmetric(10.0 ** (-decay * torch.arange(300).double()), seed=0, signs="alternate")
    op = aslinearoperator(H.to(dtype), self_adjoint=True)
    for seed in range(10):
        result = seigh(op, outer=outer, rounds=rounds, seed=seed)
        W, values = result.eigenvectors.double(), result.eigenvalues
        truth = _true_residuals(H, W, values, W)
        lower, upper = interval(values, result.residual, 30)
        assert ((lower <= truth) & (truth <= upper)).all()


def test_scree_bounds_enclose_the_scree_of_a_projection():
    H, eigenvalues = symmetric(polynomial_decay(N, 3, 1.0), seed=0, signs="random")
    W, values = _projection(H)
    lower, upper = scree_bounds(values, _true_residuals(H, W, values, W))
    best = eigenvalues.abs().sort(descending=True).values
    scree = torch.stack([best[r:].square().sum() for r in range(K + 1)]) / best.square().sum()
    assert ((lower <= scree) & (scree <= upper)).all()
    assert lower[-1] == 0


def test_scree_bounds_are_the_papers_formula():
    lower, upper = scree_bounds(torch.tensor([-3.0, 2.0]), torch.tensor([4.0, 3.0, 1.0]))
    np.testing.assert_allclose(lower, [13 / 16, 4 / 16, 0])
    np.testing.assert_allclose(upper, [(math.sqrt(13) + 1) ** 2 / 16, 9 / 16, 1 / 16])
    zero = torch.zeros(2)
    assert scree_bounds(zero[:1], zero)[1].tolist() == [0, 0]


def test_bad_requests_are_refused_with_the_values():
    values, residual = torch.ones(3), torch.ones(4)
    with pytest.raises(ShapeError, match=r"\(3, 5\).*\(3, 4\) and \(3, 5\)"):
        residuals(values, torch.ones(3, 4), torch.ones(3, 5), torch.ones(5))
    with pytest.raises(ShapeError, match="at least one probe"):
        residuals(values, torch.ones(3, 0), torch.ones(3, 0), torch.ones(0))
    with pytest.raises(SkerchError, match="0 probes"):
        probability_bounds(0, 0.5)
    with pytest.raises(SkerchError, match=r"-0\.1; it must be positive"):
        probability_bounds(30, -0.1)
    with pytest.raises(SkerchError, match=r"confidence is 95"):
        interval(values, residual, 30, confidence=95)
    with pytest.raises(ShapeError, match=r"\(3,\).*\(3,\)"):
        scree_bounds(values, residual[:3])


def test_expectation_of_a_pairs_estimate_is_its_residual(approximation):
    H, W, values = approximation
    probes = math.sqrt(N) * torch.eye(N, dtype=torch.float64)
    estimate = pair_residuals(values, W.T @ probes, W.T @ (H @ probes))
    true = torch.linalg.norm(H @ W - W * values, dim=0)
    torch.testing.assert_close(estimate, true, rtol=1e-12, atol=1e-12)


def _spectrum(name):
    generator = torch.Generator().manual_seed(1)
    rest = torch.rand(150, generator=generator, dtype=torch.float64)
    return {
        "decay": 1 / torch.arange(1, 151).double(),
        "gap": torch.cat([torch.linspace(2, 1, 10).double(), 0.01 * rest[10:]]),
        "clusters": torch.cat([3 + 1e-3 * rest[:10], 2 + 1e-3 * rest[10:20], 0.1 * rest[20:]]),
        "noise": torch.cat([torch.linspace(5, 1, 10).double(), 0.5 * rest[10:]]),
        "flat": rest,
    }[name]


@pytest.mark.parametrize("spectrum", ["decay", "gap", "clusters", "noise", "flat"])
@pytest.mark.parametrize(
    "options",
    [
        {"outer": 10, "inner": 28},
        {"outer": 20, "inner": 40, "rounds": 2},
        {"outer": 10, "inner": 40, "recovery": "oversampled"},
    ],
    ids=["many rounds", "two rounds", "oversampled"],
)
def test_residuals_of_pairs_and_errors_of_eigenvalues_lie_within_their_bounds(spectrum, options):
    H, exact = symmetric(_spectrum(spectrum), seed=0, signs="random")
    op = aslinearoperator(H.float(), self_adjoint=True)
    rounding = 10 * torch.finfo(torch.float32).eps * float(exact.abs().max())
    inside, near, whole = [], [], []
    for seed in range(100):
        result = seigh(op, seed=seed, **options)
        bounds = pair_bounds(result.pair_residual, 30, rounding)
        W = result.eigenvectors.double()
        inside.append((torch.linalg.norm(H @ W - W * result.eigenvalues, dim=0) <= bounds).double())
        nearest = (result.eigenvalues[:, None] - exact).abs().min(dim=1).values
        near.append((nearest <= result.eigenvalue_bound).double())
        found, true = (result.trace, result.norm), (float(exact.sum()), float(exact.norm()))
        whole.append([abs(f.value - t) <= f.error for f, t in zip(found, true, strict=True)])
    assert float(torch.cat(inside).mean()) >= 0.95
    assert float(torch.cat(near).mean()) >= 0.95
    assert (np.mean(whole, axis=0) >= 0.95).all()


def test_a_bound_is_the_law_of_chi_squared():
    estimate = torch.ones(3).double()
    for probes, confidence in ((5, 0.9), (30, 0.95)):
        least = chi2.ppf((1 - confidence) / 2, probes)
        bound = pair_bounds(estimate, probes, 0.5, confidence=confidence)
        assert bound[0] == pytest.approx(math.sqrt(probes / least) + 0.5)
    with pytest.raises(SkerchError, match="0 probes say nothing"):
        pair_bounds(estimate, 0)


def test_an_eigenvalue_is_nearer_where_its_vector_is_known_and_others_are_far():
    values, rho = torch.tensor([9.0, -5.0, 4.9, 1.0]).double(), torch.full((4,), 0.1).double()
    known, unknown = torch.zeros(4).double(), torch.ones(4).double()
    expected = [0.01 / 3.9, 0.01 / 3.9, 0.01 / 3.8, 0.1]
    found = eigenvalue_bounds(values, rho, known)
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0.03, atol=0)
    assert torch.equal(eigenvalue_bounds(values, rho, unknown), rho)
    half = eigenvalue_bounds(values, rho, torch.full((4,), 0.5).double())
    torch.testing.assert_close(half[:3], found[:3] + 0.05)
    assert len(eigenvalue_bounds(values[:0], rho[:0], known[:0])) == 0


@pytest.mark.parametrize("probes", [2, 3, 10, 30])
@pytest.mark.parametrize("weights", [[1], [-1], [1, 0.5], [1, -0.5], [1] + [-0.05] * 50, [1] * 50])
def test_trace_and_norm_hold_as_often_as_they_say_for_few_probes_and_whatever_is_left(
    weights, probes
):
    """E = diag(weights) is what is left beside one pair; of rank one it is the worst case."""
    weights = torch.tensor(weights).double()
    values, draws, confidence = torch.tensor([-2.0]).double(), 2000, 0.8
    true = -2 + float(weights.sum()), math.sqrt(4 + float(weights.square().sum()))
    Z = _gaussian(draws * (1 + len(weights)), probes, 0).view(draws, -1, probes)
    held = []
    for a, z in zip(Z[:, :1], Z[:, 1:], strict=True):
        HZ = torch.cat([values[:, None] * a, weights[:, None] * z])
        quadratic = (torch.cat([a, z]) * HZ).sum(0)
        residual = residuals(values, a, HZ[:1], HZ.square().sum(0))
        found = (
            trace(values, a, quadratic, residual, confidence=confidence),
            norm(values, a, HZ.T @ HZ, residual, confidence=confidence),
        )
        held.append([abs(f.value - t) <= f.error for f, t in zip(found, true, strict=True)])
    share = np.mean(held, axis=0)
    assert (share >= 0.89).all()
    if abs(weights).sum() == 1:  # of rank one it holds in just 90 of 100: the filter has the rest
        assert abs(share[0] - 0.9) < 0.02


def test_trace_and_norm_of_what_the_pairs_have_are_exact():
    H, exact = symmetric(polynomial_decay(K, 4, 1.0), seed=2)
    eigen, probes = torch.linalg.eigh(H), _gaussian(K, 30, 0)
    a, HZ = eigen.eigenvectors.T @ probes, H @ probes
    residual = residuals(eigen.eigenvalues, a, eigen.eigenvectors.T @ HZ, HZ.square().sum(0))
    found = trace(eigen.eigenvalues, a, (probes * HZ).sum(0), residual)
    assert found.value == pytest.approx(float(exact.sum()), rel=1e-12)
    assert found.error < 1e-4
    found = norm(eigen.eigenvalues, a, HZ.T @ HZ, residual)
    assert found == pytest.approx((float(exact.norm()), 0), rel=1e-12, abs=1e-8)
    with pytest.raises(SkerchError, match="at least 2"):
        norm(eigen.eigenvalues, a[:, :1], HZ[:, :1].T @ HZ[:, :1], residual)


def test_an_end_of_the_spectrum_without_a_pair_is_bounded_by_the_last_one():
    assert extremes([5.0, -4.0, 1.0], [0.1, 0.2, 0.3]) == ((5.0, 0.1), (-4.0, 0.2))
    assert extremes([5.0, 4.0], [0.1, 0.2]) == ((5.0, 0.1), (0.0, 4.2))
    assert extremes([-5.0], [0.5])[0] == Estimate(0.0, 5.5)
    assert extremes([], []) == ((0.0, 0.0), (0.0, 0.0))
