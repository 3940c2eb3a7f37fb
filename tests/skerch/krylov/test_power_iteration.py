"""Power iteration: true values and residuals, whatever the momentum and the deflation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skerch.errors import ShapeError, SkerchError
from skerch.krylov import deflated_power_iteration, power_iteration_one
from skerch.linops import DiagonalOperator
from tests.skerch.krylov.cases import matrix, peak_bytes


@pytest.mark.parametrize("momentum", [0.0, 0.15, 0.2])
def test_momentum_does_not_bias_the_value(momentum):
    A = matrix("decaying")
    value, v, residual, _, converged = power_iteration_one(
        A, momentum=momentum, tol=1e-9, max_iter=500, seed=0
    )
    assert converged
    assert value == pytest.approx(1, rel=1e-12)
    assert float(torch.linalg.norm(A @ v - value * v)) == pytest.approx(residual, abs=1e-14)


def test_momentum_saves_iterations():
    A = matrix("decaying")
    how = {"tol": 1e-6, "max_iter": 1000, "seed": 0}
    plain, fast = (power_iteration_one(A, momentum=m, **how)[3] for m in (0.0, 0.2))
    assert fast < 0.6 * plain


@pytest.mark.parametrize("tol", [1e-2, 1e-10])
def test_residuals_are_those_of_the_operator_itself(tol):
    A = matrix("indefinite")
    found = deflated_power_iteration(A, k=5, tol=tol, max_iter=2000, seed=0)
    V, values = found.eigenvectors, found.eigenvalues
    true = torch.linalg.norm(V @ A - values[:, None] * V, dim=1)
    assert torch.allclose(found.residuals, true, rtol=1e-6, atol=1e-14)
    assert torch.equal(found.converged, found.residuals <= tol * values.abs())
    assert torch.allclose(V @ V.T, torch.eye(5).double(), atol=1e-12)
    exact = np.linalg.eigvalsh(A.numpy())
    exact = exact[np.argsort(-abs(exact))][:5]
    assert np.allclose(values, exact, rtol=10 * tol)


def test_pairs_beyond_the_rank_and_all_n_pairs():
    A = matrix(torch.tensor([3.0, 2.0, 0.0, 0.0]))
    found = deflated_power_iteration(A, k=4, seed=0, tol=1e-8)
    assert np.allclose(found.eigenvalues, [3, 2, 0, 0], atol=1e-12)


def test_half_precision_and_seeds():
    A = matrix("polynomial").bfloat16()
    first, again = (power_iteration_one(A, seed=1) for _ in range(2))
    assert first[0] == again[0] == pytest.approx(1, rel=0.02)
    assert first[1].dtype == torch.float32
    fresh, other = (power_iteration_one(A, max_iter=1)[0] for _ in range(2))
    assert fresh != other


def test_a_start_is_given_or_refused():
    A = matrix("decaying")
    top = torch.linalg.eigh(A).eigenvectors[:, -1]
    assert power_iteration_one(A, init=top)[3] == 1
    with pytest.raises(ShapeError, match=r"\(9,\)"):
        power_iteration_one(A, init=torch.ones(9))
    for start, norm in ((torch.zeros(100), "0.0"), (torch.full((100,), torch.inf), "inf")):
        with pytest.raises(SkerchError, match=f"norm {norm}"):
            power_iteration_one(A, init=start)
    with pytest.raises(SkerchError, match="k=101 exceeds operator size 100"):
        deflated_power_iteration(A, k=101)
    with pytest.raises(SkerchError, match="max_iter=0"):
        power_iteration_one(A, max_iter=0)


def test_memory_is_the_result_and_a_few_vectors():
    n, k = 1_000_000, 30
    diagonal = DiagonalOperator(torch.linspace(0.5, 1.5, n))
    deflated_power_iteration(DiagonalOperator(torch.ones(30)), k=3, seed=0)  # loads libraries
    peak = peak_bytes(lambda: deflated_power_iteration(diagonal, k=k, max_iter=3, seed=0))
    assert peak < 4 * n * (k + 20)
