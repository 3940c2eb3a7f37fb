"""Every operator is compared with the dense NumPy matrix that it stands for."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

from skerch.errors import ShapeError, SkerchError
from skerch.linops import (
    DiagonalOperator,
    LinearOperator,
    LowRankOperator,
    aslinearoperator,
    to_scipy,
)

RNG = np.random.default_rng(0)
A = RNG.standard_normal((7, 5))
B = RNG.standard_normal((7, 5))
C = RNG.standard_normal((5, 4))
S = A @ A.T
SPARSE = np.where(np.abs(A) > 1, A, 0.0)
U, V = RNG.standard_normal((7, 3)), RNG.standard_normal((5, 3))
VALUES = np.array([2.0, -1.0, 0.5])


def T(array):
    return torch.from_numpy(np.array(array))


def op(array, **options):
    return aslinearoperator(T(array), **options)


def _without_adjoint(vectorwise):
    return aslinearoperator(
        lambda X: T(A) @ X, shape=(7, 5), dtype=torch.float64, vectorwise=vectorwise
    )


def assert_is_matrix(operator, dense, adjoint=True):
    rng = np.random.default_rng(1)
    assert operator.shape == dense.shape
    sides = [(operator, dense), (operator.T, dense.T)] if adjoint else [(operator, dense)]
    for side, matrix in sides:
        for trailing in [(), (1,), (6,)]:
            X = rng.standard_normal((matrix.shape[1], *trailing))
            np.testing.assert_allclose((side @ T(X)).numpy(), matrix @ X, rtol=1e-12, atol=1e-12)


OPERATORS = {
    "tensor": lambda: (op(A), A),
    "array": lambda: (aslinearoperator(A[::-1]), A[::-1]),
    "integer array": lambda: (
        aslinearoperator(np.eye(3, dtype=int), dtype=torch.float64),
        np.eye(3),
    ),
    "scipy sparse": lambda: (aslinearoperator(scipy.sparse.csr_array(SPARSE)), SPARSE),
    "scipy operator": lambda: (aslinearoperator(scipy.sparse.linalg.aslinearoperator(A)), A),
    "callable": lambda: (
        aslinearoperator(
            lambda X: T(A) @ X, shape=(7, 5), dtype=torch.float64, adjoint=lambda X: T(A).T @ X
        ),
        A,
    ),
    "adjoint": lambda: (op(A).T, A.T),
    "sum": lambda: (op(A) + op(B), A + B),
    "difference": lambda: (op(A) - op(B), A - B),
    "scaled": lambda: (-2.5 * op(A), -2.5 * A),
    "scaled by a NumPy scalar": lambda: (np.float64(2.5) * op(A), 2.5 * A),
    "product": lambda: (op(A) @ op(C), A @ C),
    "diagonal": lambda: (DiagonalOperator(T(VALUES)), np.diag(VALUES)),
    "eigenpairs": lambda: (LowRankOperator(T(U), T(VALUES)), U @ np.diag(VALUES) @ U.T),
    "singular triplets": lambda: (
        LowRankOperator(T(U), T(VALUES), T(V)),
        U @ np.diag(VALUES) @ V.T,
    ),
    "nested": lambda: (2.0 * (op(A) @ op(C)).T - op((B @ C).T), 2 * (A @ C).T - (B @ C).T),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_and_its_adjoint_multiply_vectors_and_blocks_as_the_dense_matrix(name):
    operator, dense = OPERATORS[name]()
    assert_is_matrix(operator, dense)


def test_vectorwise_callable_is_never_given_a_block():
    def matvec(x):
        assert x.shape == (5,)
        return T(A) @ x

    operator = aslinearoperator(matvec, shape=(7, 5), dtype=torch.float64, vectorwise=True)
    assert_is_matrix(operator, A, adjoint=False)


def test_self_adjointness_is_declared_and_survives_sums_and_scales_only():
    H, D = op(S, self_adjoint=True), DiagonalOperator(torch.ones(7, dtype=torch.float64))
    assert (H + D).self_adjoint
    assert (-3.0 * (H - D)).self_adjoint
    assert H.T is H
    assert not op(S).self_adjoint
    assert not (H + op(S)).self_adjoint
    assert not (H @ D).self_adjoint
    assert LowRankOperator(T(U), T(VALUES)).self_adjoint
    assert not LowRankOperator(T(U), T(VALUES), T(U)).self_adjoint


def test_a_linear_operator_is_returned_as_it_is():
    H = op(S)
    assert aslinearoperator(H, shape=(7, 7), dtype=torch.float64, device="cpu") is H


def test_scipy_runs_its_solvers_on_our_operators():
    H = to_scipy(op(S.astype(np.float32), self_adjoint=True))
    values = scipy.sparse.linalg.eigsh(H, k=2, which="LM", return_eigenvectors=False)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(S)[-2:], rtol=1e-5)

    lean = to_scipy(op(A) @ op(C))
    singular_values = scipy.sparse.linalg.svds(lean, k=2, return_singular_vectors=False)
    expected = np.linalg.svd(A @ C, compute_uv=False)
    np.testing.assert_allclose(np.sort(singular_values)[::-1], expected[:2], rtol=1e-10)


def test_scipy_round_trip_keeps_all_four_products_and_the_dtype():
    shown = to_scipy(op(A))
    assert shown.dtype == np.float64
    assert_is_matrix(aslinearoperator(shown), A)
    np.testing.assert_allclose(shown.matvec(C[:, 0]), A @ C[:, 0])
    np.testing.assert_allclose(shown.rmatvec(B[:, 0]), A.T @ B[:, 0])


def test_curvlinops_operators_keep_their_products_adjoints_and_declarations():
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    model = model.double()
    params = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    identity = torch.eye(26, dtype=torch.float64)

    hessian = curvlinops.HessianLinearOperator(model, torch.nn.MSELoss(), params, [batch])
    assert aslinearoperator(hessian).self_adjoint
    assert_is_matrix(aslinearoperator(hessian), (hessian @ identity).numpy())

    jacobian = curvlinops.JacobianLinearOperator(model, params, [batch])
    assert not aslinearoperator(jacobian).self_adjoint
    assert_is_matrix(aslinearoperator(jacobian), (jacobian @ identity).numpy())


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: op(A) @ torch.ones(7, dtype=torch.float64), [r"\(7, 5\)", r"\(7,\)"]),
        (lambda: op(A).T @ torch.ones(5, 2, dtype=torch.float64), [r"\(5, 2\)", "7"]),
        (lambda: op(A) @ torch.ones(5), ["float32", "float64"]),
        (lambda: op(A) + op(C), [r"\(7, 5\)", r"\(5, 4\)"]),
        (lambda: op(A) @ op(B), [r"\(7, 5\).*\(7, 5\)", "5 columns meet 7 rows"]),
        (lambda: op(A) + aslinearoperator(A, dtype=torch.float32), ["float64", "float32"]),
        (lambda: LowRankOperator(T(U), T(VALUES[:2]), T(V)), [r"\(7, 3\), \(2,\) and \(5, 3\)"]),
        (lambda: LowRankOperator(T(U), T(VALUES).float()), ["float64", "float32"]),
        (lambda: DiagonalOperator(T(A)), [r"\(7, 5\)"]),
        (lambda: op(A[0]), [r"\(5,\)"]),
        (lambda: op(A, shape=(5, 7)), [r"\(7, 5\)", r"\(5, 7\)"]),
        (lambda: aslinearoperator(op(A), dtype=torch.float32), ["float64", "float32"]),
        (lambda: op(A, self_adjoint=True), [r"\(7, 5\)", "not square"]),
        (
            lambda: (
                aslinearoperator(lambda X: X[:3], shape=(7, 5), dtype=torch.float64)
                @ torch.ones(5, 2, dtype=torch.float64)
            ),
            [r"\(7, 5\)", r"\(3, 2\)"],
        ),
    ],
)
def test_mismatches_are_errors_that_say_both_sides(mistake, words):
    with pytest.raises(ShapeError) as error:
        mistake()
    for word in words:
        error.match(word)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: aslinearoperator(A + 1j), "complex128.*only real"),
        (lambda: aslinearoperator(scipy.sparse.csr_array(SPARSE * 1j)), "complex128.*only real"),
        (lambda: aslinearoperator(np.eye(3, dtype=int)), "int64.*convert"),
        (lambda: aslinearoperator(lambda X: X), "pass shape"),
        (lambda: aslinearoperator("H"), "str is no linear operator"),
        (lambda: aslinearoperator(op(S), self_adjoint=True), "self_adjoint=False"),
        (lambda: _without_adjoint(False).T @ torch.ones(7, dtype=torch.float64), "no adjoint"),
        (
            lambda: (
                aslinearoperator(
                    scipy.sparse.linalg.LinearOperator((7, 5), matvec=lambda x: A @ x, dtype=float)
                ).T
                @ torch.ones(7, dtype=torch.float64)
            ),
            "no adjoint",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused_with_the_way_out(mistake, words):
    with pytest.raises(SkerchError, match=words):
        mistake()


def test_subclass_needs_its_block_product_only():
    class Shift(LinearOperator):
        def _matmul(self, X):
            return X.roll(1, dims=0)

    assert_is_matrix(Shift((4, 4), torch.float64), np.roll(np.eye(4), 1, axis=0), adjoint=False)
