"""Every operator is compared with the dense NumPy matrix that it stands for."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

from skerch import seigh, ssvd
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


def scipy_op(array):
    return scipy.sparse.linalg.aslinearoperator(array)


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
    "scipy operator": lambda: (aslinearoperator(scipy_op(A)), A),
    "list": lambda: (aslinearoperator(A.tolist()), A),
    "other byte order": lambda: (aslinearoperator(A.astype(A.dtype.newbyteorder())), A),
    "unmasked": lambda: (aslinearoperator(np.ma.masked_array(A)), A),
    "sparse tensor": lambda: (aslinearoperator(T(SPARSE).to_sparse_csr()), SPARSE),
    "callable": lambda: (
        aslinearoperator(
            lambda X: T(A) @ X, shape=(7, 5), dtype=torch.float64, adjoint=lambda X: T(A).T @ X
        ),
        A,
    ),
    "callable on arrays": lambda: (
        aslinearoperator(
            lambda x: A @ x.numpy(),
            shape=(7, 5),
            dtype=torch.float64,
            adjoint=lambda x: x.numpy() @ A,
            vectorwise=True,
        ),
        A,
    ),
    "adjoint": lambda: (op(A).T, A.T),
    "sum": lambda: (op(A) + op(B), A + B),
    "difference": lambda: (op(A) - op(B), A - B),
    "scaled": lambda: (-2.5 * op(A), -2.5 * A),
    "scaled by a NumPy scalar": lambda: (np.float64(2.5) * op(A), 2.5 * A),
    "scaled by a tensor": lambda: (torch.tensor(2.5, requires_grad=True) * op(A), 2.5 * A),
    "scaled by an array": lambda: (np.array(3) * op(A), 3 * A),
    "divided": lambda: (op(A) / np.int64(4), A / 4),
    "sum()": lambda: (sum([op(A), T(B), A, scipy.sparse.csr_array(SPARSE)]), 2 * A + B + SPARSE),
    "array + operator": lambda: (B + op(A), A + B),
    "array - operator": lambda: (B - op(A), B - A),
    "operator - tensor": lambda: (op(A) - T(B), A - B),
    "operator - scipy operator": lambda: (op(A) - scipy_op(B), A - B),
    "scipy operator - operator": lambda: (scipy_op(B) - op(A), B - A),
    "scipy matrix + operator": lambda: (scipy.sparse.csr_matrix(SPARSE) + op(A), A + SPARSE),
    "operator @ scipy matrix": lambda: (op(A).T @ scipy.sparse.csr_array(SPARSE), A.T @ SPARSE),
    "product": lambda: (op(A) @ op(C), A @ C),
    "diagonal": lambda: (DiagonalOperator(T(VALUES)), np.diag(VALUES)),
    "diagonal array": lambda: (DiagonalOperator(VALUES.astype(">f8")), np.diag(VALUES)),
    "eigenpairs in arrays": lambda: (LowRankOperator(U, VALUES), U @ np.diag(VALUES) @ U.T),
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


def assert_complex(found, expected, rtol=1e-12):
    found = np.asarray(found)
    assert np.iscomplexobj(found)
    np.testing.assert_allclose(found, expected, rtol=rtol)


Z = B[:, :3] + 1j * B[:, 2:]


def test_a_real_operator_times_complex_is_complex_on_both_sides():
    assert_complex(op(A).T @ T(Z), A.T @ Z)
    assert_complex(op(A).T @ Z[:, 0], A.T @ Z[:, 0])
    assert_complex(T(Z).T @ op(A), Z.T @ A)
    single = aslinearoperator(A.astype(np.float32)).T @ Z
    assert single.dtype == torch.complex64
    assert_complex(single, A.T @ Z, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.bfloat16, 0.1)])
def test_scipy_solves_complex_systems_with_our_operators(dtype, rtol):
    shown = to_scipy(aslinearoperator(SPARSE, dtype=dtype))
    assert_complex(shown.rmatvec(Z[:, 0]), SPARSE.T @ Z[:, 0], rtol=rtol)
    assert_complex(shown.H @ Z, SPARSE.T @ Z, rtol=rtol)
    assert_complex(shown.T @ Z, SPARSE.T @ Z, rtol=rtol)
    b = A @ (C[:, 0] + 1j * C[:, 1])
    found = scipy.sparse.linalg.lsqr(to_scipy(op(A)), b.real, atol=1e-14, btol=1e-14)[0]
    np.testing.assert_allclose(found, C[:, 0], rtol=1e-8)
    damped = S + (1 + 1j) * np.eye(7)
    solver = to_scipy(op(S)) + scipy_op((1 + 1j) * np.eye(7))
    x, info = scipy.sparse.linalg.bicgstab(solver, b, rtol=1e-13)
    assert info == 0
    assert_complex(x, np.linalg.solve(damped, b), rtol=1e-8)


@pytest.mark.parametrize(
    "array",
    [
        A[0],
        A[0].tolist(),
        A[0].astype(">f4"),
        A[0].astype(np.float16),
        A[:, 0][::-1][:5],
        np.broadcast_to(A[0], (7, 5)).T,
        np.array([True, False, True, True, False]),
        np.arange(5),
        np.asmatrix(A[0]).T,
        C,
    ],
    ids=lambda array: f"{type(array).__name__} {getattr(array, 'dtype', '')}",
)
def test_foreign_arrays_are_operands_and_results_are_tensors(array):
    expected = A @ np.asarray(array, dtype=float)
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        found = aslinearoperator(A, dtype=dtype) @ array
        assert found.dtype == dtype
        np.testing.assert_allclose(found.numpy(), expected, rtol=rtol, atol=rtol)


def test_arrays_multiply_operators_from_the_left():
    X = RNG.standard_normal((3, 7))
    np.testing.assert_allclose(X @ op(A), X @ A)
    np.testing.assert_allclose(T(X[0]) @ op(A), X[0] @ A)
    np.testing.assert_allclose(X[1].tolist() @ op(A), X[1] @ A)


class Metres(np.ndarray):
    """An array that is more than its numbers."""


HIDDEN = np.ma.masked_greater(A, 1)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (HIDDEN, r"masked.*\.filled"),
        (torch.masked.masked_tensor(T(A), T(A) > 0), r"masked.*\.to_tensor"),
        (A.view(Metres), "Metres.*np.asarray"),
        (A.astype(np.longdouble), r"float128.*\.astype"),
        (A.astype(object), r"object.*\.astype"),
        (A.astype("U4"), r"<U4.*\.astype"),
        ([[1.0, 2.0], [3.0]], "A list is no array"),
    ],
    ids=["masked", "masked tensor", "subclass", "longdouble", "object", "string", "ragged"],
)
def test_arrays_that_would_lose_their_meaning_are_refused_wherever_they_come(array, words):
    for use in (
        aslinearoperator,
        op(A).T.__matmul__,
        op(A).__add__,
        to_scipy,
        lambda matrix: ssvd(matrix, outer=1),
        lambda matrix: seigh(matrix, outer=1),
    ):
        with pytest.raises(SkerchError, match=words):
            use(array)
    if isinstance(array, np.ndarray):  # SciPy reads the others itself
        with pytest.raises(SkerchError, match=words):
            to_scipy(op(A)).rmatmat(array)


MATRICES = {
    "tensor": T,
    "array": np.array,
    "list": np.ndarray.tolist,
    "sparse": scipy.sparse.csr_array,
    "sparse tensor": lambda matrix: T(matrix).to_sparse_csr(),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_decompositions_take_matrices_and_see_whether_they_are_symmetric(kind):
    H = S + np.eye(7)
    values = np.linalg.eigvalsh(H)[::-1]
    found = seigh(MATRICES[kind](H), outer=7, inner=7, rounds=1).eigenvalues
    np.testing.assert_allclose(found, values, rtol=1e-8)
    found = ssvd(MATRICES[kind](A), outer=5).singular_values
    np.testing.assert_allclose(found, np.linalg.svd(A, compute_uv=False), rtol=1e-12)
    H[2, 4] *= 1 + 1e-4
    with pytest.raises(
        SkerchError, match=r"neither a symmetric matrix .* \(A \+ A\.T\) / 2 or ssvd"
    ):
        seigh(MATRICES[kind](H), outer=2)


def test_an_opaque_operator_has_to_declare_its_symmetry():
    with pytest.raises(SkerchError, match="self_adjoint=True"):
        seigh(scipy_op(S), outer=2)
    with pytest.raises(SkerchError, match="pass shape"):
        seigh(lambda X: X, outer=2)


def test_a_damping_matrix_keeps_an_operator_symmetric_if_it_is_so_itself():
    H = op(S, self_adjoint=True)
    assert (H + 0.1 * np.eye(7)).self_adjoint
    assert (T(S) - H).self_adjoint
    assert not (H + np.triu(S)).self_adjoint
    assert not (H + scipy_op(S)).self_adjoint
    values = seigh(H + 0.1 * torch.eye(7).double(), outer=1, inner=7, rounds=1).eigenvalues
    np.testing.assert_allclose(values, np.linalg.eigvalsh(S)[-1:] + 0.1, rtol=1e-10)


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


class DictOperator:
    """What curvlinops' operators of parameters in a dict have, after 3.0: tensors or lists of them.

    A Jacobian of the entries of the parameters, (7, 5).
    """

    SELF_ADJOINT = False
    shape, dtype, device = (7, 5), torch.float64, torch.device("cpu")

    def __init__(self, params: dict[str, torch.Tensor], matrix: np.ndarray = A):
        self.params, self.matrix, self.shape = params, T(matrix), matrix.shape

    def __matmul__(self, X: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        assert isinstance(X, torch.Tensor)
        return self.matrix @ X

    def adjoint(self) -> "DictOperator":
        return DictOperator(self.params, self.matrix.numpy().T)


def test_curvlinops_operators_of_parameters_in_a_dict_are_operators():
    theirs = DictOperator({"weight": torch.ones(2, 2), "bias": torch.ones(1)})
    assert_is_matrix(aslinearoperator(theirs), A)


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
        (lambda: op(A) + T(C), [r"\(7, 5\)", r"\(5, 4\)"]),
        (lambda: op(A) - T(A[0]), [r"\(5,\)", r"DiagonalOperator\(d\)"]),
        (lambda: op(A) + T(A).float(), ["float64", "float32"]),
        (lambda: A @ op(A), [r"\(7, 5\)", r"\(5, 7\)"]),
        (lambda: op(A) @ np.ones((5, 2, 2)), [r"\(5, 2, 2\)"]),
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
        (lambda: aslinearoperator(A + 1j, dtype=torch.float64), "complex128.*real or.*imaginary"),
        (lambda: op(A) - 1j * A, "complex128.*real or.*imaginary"),
        (lambda: op(A) - 3, "± 3.*DiagonalOperator"),
        (lambda: np.float64(0.5) + op(A), "0.5.*DiagonalOperator"),
        (lambda: op(A) * op(C), "DenseOperator; write A @ B"),
        (lambda: B * op(A), "ndarray; write A @ B"),
        (lambda: np.complex64(2) * op(A), "complex64.*real and imaginary parts"),
        (lambda: op(A) * torch.tensor(1j), "real and imaginary parts"),
        (lambda: DiagonalOperator(np.ma.masked_array(VALUES, mask=[0, 1, 0])), r"\.filled"),
        (lambda: op(A) @ ([torch.ones(1, requires_grad=True)] * 5), "A list is no array here"),
        (lambda: op(A) / torch.tensor(0), "divide by another number"),
        (lambda: A / op(A), "no inverse; solve"),
        (lambda: op(S) ** 2, "A @ A"),
        (lambda: op(A) @ 2, "int is no linear operator"),
        (lambda: op(A) + None, "NoneType is no linear operator"),
        (lambda: np.dot(A, op(C)), r"A @ torch.eye\(n\)"),
        (lambda: scipy_op(A) @ op(C), r"aslinearoperator\(B\) @ A"),
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
