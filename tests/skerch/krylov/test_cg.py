"""Systems by conjugate gradients, against dense solves of NumPy and products counted by SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from skerch import aslinearoperator
from skerch.errors import ShapeError, SkerchError
from skerch.krylov import conjugate_gradients
from skerch.linops import DiagonalOperator
from skerch.measurements.measure import NonFiniteError
from tests.skerch.krylov.cases import matrix

PSD = ["decaying", "polynomial", "flat", "rank one"]


def damped(A, damping):
    return A + damping * torch.eye(len(A), dtype=torch.float64)


def right_hand_sides(q=5, n=100, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, q, generator=generator, dtype=torch.float64)


def true_residuals(A, damping, B, X):
    return torch.linalg.norm(B - damped(A, damping) @ X, dim=0) / torch.linalg.norm(B, dim=0)


@pytest.mark.parametrize("spectrum", PSD)
@pytest.mark.parametrize("damping", [1e-2, 1.0])
def test_solves_what_numpy_solves(spectrum, damping):
    A, B = matrix(spectrum), right_hand_sides()
    found = conjugate_gradients(A, B, damping=damping, tol=1e-13)
    exact = torch.from_numpy(np.linalg.solve(damped(A, damping).numpy(), B.numpy()))
    assert torch.linalg.norm(found.solution - exact) <= 1e-10 * torch.linalg.norm(exact)
    assert found.converged.all()


@pytest.mark.parametrize("spectrum", PSD)
def test_takes_no_more_steps_than_scipys_cg_and_one_check(spectrum):
    A, B = matrix(spectrum), right_hand_sides(20)
    ours, theirs = 0, []
    op = scipy.sparse.linalg.LinearOperator(
        A.shape, matvec=lambda x: theirs.append(1) or A.numpy() @ x + 1e-3 * x, dtype=float
    )
    for b in B.T:
        for tol in (1e-2, 1e-6, 1e-10):
            scipy.sparse.linalg.cg(op, b.numpy(), rtol=tol)
            found = conjugate_gradients(A, b, damping=1e-3, tol=tol)
            assert found.converged
            ours += found.products - 1
    assert ours <= 1.01 * len(theirs)  # either may cross a tolerance a step later, by rounding


@pytest.mark.parametrize("spectrum", PSD)
def test_a_block_is_solved_as_its_columns_are(spectrum):
    A, B = matrix(spectrum), right_hand_sides()
    B[:, 1] = 0
    B[:, 2] *= 1e-20
    how = {"damping": 0.1, "tol": 1e-8}
    together = conjugate_gradients(A, B, **how)
    alone = [conjugate_gradients(A, b, **how) for b in B.T]
    assert together.products == sum(one.products for one in alone)
    assert together.iterations == max(one.iterations for one in alone)
    for column, one in enumerate(alone):
        assert torch.allclose(together.solution[:, column], one.solution, rtol=1e-7, atol=0)
        assert together.converged[column]
        assert one.converged
        assert one.residuals.shape == one.converged.shape == ()
        assert one.history.shape == (one.iterations,)
    assert not together.solution[:, 1].any()


def test_a_column_that_has_converged_stays_as_it_is():
    A, B = matrix("decaying"), right_hand_sides()
    B[:, 0] = torch.linalg.eigh(A).eigenvectors[:, -1]  # one step
    found = conjugate_gradients(A, B, damping=1e-3, tol=1e-9)
    assert (found.history[1:, 0] == found.history[1, 0]).all()
    assert found.products < found.iterations * 4 + 3


def test_an_exact_preconditioner_needs_one_step_and_its_check():
    A, B = matrix("decaying"), right_hand_sides()
    inverse = torch.linalg.inv(damped(A, 0.01))
    for scale in (1.0, 1e6):
        found = conjugate_gradients(A, B, damping=0.01, preconditioner=inverse * scale, tol=1e-10)
        assert (found.iterations, found.products) == (2, 10)
        assert found.converged.all()


def test_a_preconditioner_saves_products_of_an_ill_conditioned_system():
    scales = torch.logspace(-4, 4, 100, dtype=torch.float64)
    A = scales[:, None] * matrix("flat") * scales
    b, diagonal = right_hand_sides(1), DiagonalOperator(1 / A.diagonal())
    plain = conjugate_gradients(A, b, tol=1e-8, max_products=200)
    found = conjugate_gradients(A, b, preconditioner=diagonal, tol=1e-8)
    assert found.converged
    assert not plain.converged
    assert found.products < 40


@pytest.mark.parametrize("most", [2, 3, 7, 20])
def test_max_products_bounds_the_products_of_each_column(most):
    A, B = matrix("decaying"), right_hand_sides()
    found = conjugate_gradients(A, B, damping=1e-3, tol=1e-12, max_products=most)
    assert (found.iterations, found.products) == (most, most * 5)
    assert not found.converged.any()
    true = true_residuals(A, 1e-3, B, found.solution)
    assert torch.allclose(found.residuals, true, rtol=1e-9)


def test_residuals_are_true_where_rounding_keeps_them_above_the_tolerance():
    A, B = matrix("decaying").float(), right_hand_sides()
    found = conjugate_gradients(A, B, damping=1e-4, tol=1e-9)
    true = true_residuals(A.double(), 1e-4, B, found.solution.double())
    assert not found.converged.any()
    rounding = 1.2e-7 * torch.linalg.norm(found.solution, dim=0) / torch.linalg.norm(B, dim=0)
    assert ((found.residuals - true).abs() < rounding).all()
    assert (true < 3 * rounding).all()
    assert found.history.min() > 1e-9
    assert found.products < 5 * 600


def test_reaches_float32s_accuracy_with_a_well_conditioned_system():
    A, B = matrix("flat"), right_hand_sides()
    found = conjugate_gradients(A.float(), B, damping=0.1, tol=1e-6)
    assert found.solution.dtype == torch.float32
    assert found.converged.all()
    assert (true_residuals(A, 0.1, B, found.solution.double()) < 1.5e-6).all()


def test_goes_on_from_a_start():
    A, B = matrix("decaying"), right_hand_sides()
    B[:, 3] = 0
    how = {"damping": 1e-3, "tol": 1e-8}
    first = conjugate_gradients(A, B, **how)
    again = conjugate_gradients(A, B, x0=first.solution, **how)
    assert (again.iterations, again.products) == (1, 4)
    assert torch.equal(again.solution, first.solution)
    found = conjugate_gradients(A, B[:, 0], x0=torch.ones(100).double(), **how)
    assert found.converged
    assert torch.allclose(found.solution, first.solution[:, 0], rtol=1e-4)


def test_says_residuals_as_it_goes():
    told = []
    A, B = matrix("flat"), right_hand_sides()
    found = conjugate_gradients(A, B, tol=1e-6, callback=told.append)
    assert torch.equal(torch.stack(told), found.history)


def test_an_operator_that_returns_its_operand_is_no_trap():
    same = aslinearoperator(lambda X: X, shape=(20, 20), self_adjoint=True, dtype=torch.float64)
    B = right_hand_sides(2, 20)
    found = conjugate_gradients(same, B, damping=1.0, preconditioner=same)
    assert torch.allclose(found.solution, B / 2)


def test_negative_curvature_is_refused_with_a_damping_and_a_curvature_that_do():
    A, B = matrix("indefinite"), right_hand_sides()  # from -0.73 to 1
    with pytest.raises(SkerchError, match=r"not positive definite.*above 0.*GGN") as refusal:
        conjugate_gradients(A, B, damping=0.01)
    above = float(str(refusal.value).split("above ")[1].split()[0])
    assert 0.01 < above < 0.73
    assert conjugate_gradients(A, B, damping=0.8).converged.all()
    with pytest.raises(SkerchError, match="preconditioner is not positive definite"):
        conjugate_gradients(matrix("flat"), B, preconditioner=A)


def test_what_does_not_fit_is_refused():
    A, B = matrix("flat"), right_hand_sides()
    for how, message in [
        ({"damping": -1.0}, "damping=-1.0"),
        ({"damping": float("nan")}, "damping=nan"),
        ({"max_products": 1}, "max_products=1"),
        ({"preconditioner": torch.triu(A)}, "A preconditioner needs a symmetric operator"),
        ({"preconditioner": torch.eye(3)}, r"shape \(3, 3\); it must be \(100, 100\)"),
        ({"x0": B[:, 0]}, r"x0 has the shape \(100,\)"),
    ]:
        with pytest.raises(SkerchError, match=message):
            conjugate_gradients(A, B, **how)
    with pytest.raises(ShapeError, match=r"must be \(100,\) or \(100, q\)"):
        conjugate_gradients(A, B[:9])
    B[4, 2] = float("nan")
    with pytest.raises(NonFiniteError, match="Column 2 of B"):
        conjugate_gradients(A, B)
    with pytest.raises(NonFiniteError, match="Product 0"):
        conjugate_gradients(DiagonalOperator(torch.tensor([1.0, float("nan")])), torch.ones(2))
