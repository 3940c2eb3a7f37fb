"""The damping that held-out gradients choose, against dense solves for other gradients.

The exact curvature is a covariance, gradients have it, and the approximation is that of a sample.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skerch.errors import ShapeError, SkerchError
from skerch.krylov import choose_damping, conjugate_gradients
from skerch.measurements.measure import NonFiniteError
from tests.skerch.krylov.cases import matrix

EYE = torch.eye(100, dtype=torch.float64)
STEPS = 10.0 ** np.arange(-4, 2.5, 0.5)


class Case:
    """A, a sample of gradients of that covariance, its covariance F, and other gradients."""

    def __init__(self, spectrum, size):
        generator = torch.Generator().manual_seed(0)

        def gradients(count):
            return torch.linalg.cholesky(self.A + 1e-12 * EYE) @ torch.randn(
                100, count, generator=generator, dtype=torch.float64
            )

        self.A = matrix(spectrum)
        self.mean = float(self.A.trace()) / 100
        self.seen = gradients(size)
        self.F = self.seen @ self.seen.T / size
        self.held_out, self.test = gradients(20), gradients(40)
        self.dampings = self.mean * STEPS

    def inverse(self, damping):
        return torch.linalg.inv(self.F + damping * EYE)

    def choose(self, damping, gradients=None, **how):
        return choose_damping(
            self.A,
            self.inverse,
            self.held_out if gradients is None else gradients,
            damping=damping,
            dampings=self.dampings,
            **how,
        )

    def exact(self, damping, gradients):
        return torch.linalg.solve(self.A + damping * EYE, gradients)

    def error(self, damping, approximate):
        """The mean of ‖x - x*‖² / ‖x*‖² in the energy norm, for the other gradients."""
        K, exact = self.A + damping * EYE, self.exact(damping, self.test)
        E = self.inverse(approximate) @ self.test - exact
        return float(((E * (K @ E)).sum(0) / (exact * (K @ exact)).sum(0)).mean())


CASES = [(spectrum, size) for spectrum in ("decaying", "polynomial") for size in (20, 60, 200)]


@pytest.mark.parametrize(("spectrum", "size"), CASES)
@pytest.mark.parametrize("relative", [1e-2, 0.1, 1])
def test_chooses_the_damping_of_least_error_for_other_gradients(spectrum, size, relative):
    case = Case(spectrum, size)
    damping = relative * case.mean
    found = case.choose(damping)
    least = min(case.error(damping, each) for each in case.dampings)
    assert case.error(damping, found.damping) <= 1.01 * least
    assert not found.is_at_end
    exact = case.choose(damping, solutions=case.exact(damping, case.held_out))
    assert exact.damping == found.damping


@pytest.mark.parametrize(("spectrum", "size"), CASES)
def test_the_residual_would_choose_too_much_and_the_sample_itself_too_little(spectrum, size):
    case = Case(spectrum, size)
    found = case.choose(0.1 * case.mean)
    by_residual = float(found.dampings[found.residuals.mean(1).argmin()])
    by_sample = case.choose(0.1 * case.mean, case.seen).damping
    assert by_sample <= found.damping <= by_residual
    if size < 200:
        assert by_sample < found.damping


def test_errors_are_those_of_dense_solves():
    case, damping = Case("decaying", 60), 0.01
    K, exact = case.A + damping * EYE, case.exact(damping, case.held_out)
    found = case.choose(damping, solutions=exact)
    for index, each in enumerate(found.dampings):
        X = case.inverse(each) @ case.held_out
        errors = ((X - exact) * (K @ (X - exact))).sum(0) / (exact * (K @ exact)).sum(0)
        assert torch.allclose(found.errors[index], errors, rtol=1e-8, atol=1e-10)
        residuals = torch.linalg.norm(K @ X - case.held_out, dim=0)
        residuals /= torch.linalg.norm(case.held_out, dim=0)
        assert torch.allclose(found.residuals[index], residuals, rtol=1e-8)
    assert torch.allclose(found.mean, found.errors.mean(1))
    assert torch.allclose(found.stderr, found.errors.std(1) / 20**0.5)
    assert found.products == 13 * 20


def test_an_exact_curvature_wants_the_damping_of_the_system():
    case = Case("decaying", 60)
    case.F = case.A
    for scaled in (False, True):
        found = case.choose(case.dampings[5], scaled=scaled)
        assert found.damping == case.dampings[5]
        assert found.mean.min().abs() < 1e-10
        assert found.mean[-1] > 0.1  # an infinite one does not win


def test_scaled_errors_are_those_of_correlations_of_scores_and_do_not_know_the_scale():
    case = Case("decaying", 60)
    damping = 0.1 * case.mean
    exact = case.exact(damping, case.held_out)
    found = case.choose(damping, scaled=True, solutions=exact)
    for errors, each in zip(found.errors, case.dampings, strict=True):
        X = case.inverse(each) @ case.held_out
        KX = (case.A + damping * EYE) @ X  # scores are hᵀx, for gradients h of that covariance
        correlation = (KX * exact).sum(0) / (
            (KX * X).sum(0) * (case.held_out * exact).sum(0)
        ).sqrt()
        assert torch.allclose(errors, 1 - correlation**2, rtol=1e-8, atol=1e-10)
    case.F = case.F * 4
    case.dampings = case.dampings * 4
    again = case.choose(damping, scaled=True, solutions=exact)
    assert torch.allclose(again.errors, found.errors)


@pytest.mark.parametrize(("spectrum", "size"), CASES)
def test_the_damping_serves_for_a_preconditioner(spectrum, size):
    case = Case(spectrum, size)
    damping = 0.1 * case.mean

    def products(each):
        M = case.inverse(each)
        return conjugate_gradients(
            case.A, case.test, damping=damping, preconditioner=M, tol=1e-6
        ).products

    least = min(products(each) for each in case.dampings)
    assert products(case.choose(damping).damping) < 1.25 * least


def test_gradients_that_are_zero_are_left_out():
    case = Case("decaying", 60)
    found = case.choose(0.01)
    case.held_out[:, 3] = 0
    assert torch.allclose(case.choose(0.01).errors, found.errors[:, torch.arange(20) != 3])
    alone = case.choose(0.01, case.test[:, 0])
    assert alone.errors.shape == (13, 1)
    assert alone.stderr.isnan().all()


def test_what_does_not_fit_is_refused():
    case = Case("decaying", 60)
    with pytest.raises(SkerchError, match="All gradients are 0"):
        case.choose(0.1, torch.zeros(100, 3))
    with pytest.raises(SkerchError, match=r"damping=-1 and dampings=\["):
        case.choose(-1)
    with pytest.raises(ShapeError, match=r"gradients has the shape \(7, 3\)"):
        case.choose(0.1, torch.ones(7, 3))
    with pytest.raises(NonFiniteError, match="Column 1 of gradients"):
        case.choose(0.1, torch.tensor([[1.0, float("nan")]]).repeat(100, 1))
    case.A = -case.A
    with pytest.raises(SkerchError, match="not positive definite"):
        case.choose(1e-3)
    case.dampings = []
    with pytest.raises(SkerchError, match=r"dampings=\[\]"):
        case.choose(0.1)
