"""Operators and their functions, against dense matrices that torch.kron and eigh make."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import skerch
from skerch.errors import SkerchError
from skerch.kronecker.eigenbasis import decompose
from skerch.kronecker.layers import find_layers
from skerch.kronecker.methods.autocorrelation import Autocorrelation
from skerch.kronecker.operator import KroneckerBlock, KroneckerOperator

EXACT = {"rtol": 1e-10, "atol": 1e-11}
DAMPING = 0.1


class Network(nn.Module):
    """Groups, a transposed weight with a diagonal A, biases, and a parameter of no module."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.embedding = nn.Embedding(4, 3)
        self.conv = nn.Conv1d(4, 2, 2, groups=2)
        self.head = nn.Linear(3, 2)
        self.tail = nn.Linear(2, 2, bias=False)


def factor(groups, size, rank=None):
    X = torch.randn(groups, size, rank or size, dtype=torch.float64)
    return X @ X.mT / size


def made(*, include_bias=True, corrected=False, dtype=torch.float64):
    """An operator, and its dense matrix in the order of the flat parameters."""
    torch.manual_seed(0)
    network = Network()
    params = dict(network.named_parameters())
    shapes = {name: p.shape for name, p in params.items()}
    layers = find_layers(network, params, include_bias=include_bias)
    size = sum(p.numel() for p in params.values())
    dense = torch.zeros(size, size, dtype=torch.float64)
    at = dict(
        zip(params, torch.arange(size).split([p.numel() for p in params.values()]), strict=True)
    )
    blocks = []
    for layer in layers.covered:
        groups, outputs, inputs = layer.shape
        S = factor(groups, outputs)
        A = torch.rand(groups, inputs).double() if layer.indices else factor(groups, inputs)
        bases = decompose(S), decompose(A)
        values = torch.rand(layer.shape).double() if corrected else None
        blocks.append(KroneckerBlock.of(layer, *bases, values))
        index = layer.matrix({n: at[n].view(shapes[n]) for n in layer.shapes})
        for group in range(groups):
            whole = A[group].diag() if layer.indices else A[group]
            block = torch.kron(S[group], whole)
            if corrected:
                Q_A = eye(inputs) if layer.indices else bases[1].vectors[group]
                Q = torch.kron(bases[0].vectors[group].contiguous(), Q_A.contiguous())
                block = Q @ values[group].flatten().diag() @ Q.T
            own = index[group].flatten()
            dense[own[:, None], own] = block
    op = KroneckerOperator(shapes, blocks, uncovered=layers.uncovered, dtype=dtype)
    return op, dense


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def matrix(op):
    return op @ torch.eye(op.size, dtype=op.dtype)


def function(dense, f):
    values, vectors = torch.linalg.eigh(dense)
    return (vectors * f(values.clamp(min=0))) @ vectors.T


@pytest.mark.parametrize("include_bias", [True, False])
@pytest.mark.parametrize("corrected", [True, False])
def test_products_are_those_of_the_dense_matrix(include_bias, corrected):
    op, dense = made(include_bias=include_bias, corrected=corrected)
    torch.testing.assert_close(matrix(op), dense, **EXACT)
    assert ("head.bias" in op.uncovered) == (not include_bias)
    assert "scale" in op.uncovered


@pytest.mark.parametrize("include_bias", [True, False])
def test_a_gradient_with_a_bias_is_solved_as_the_dense_matrix_does(include_bias):
    """The case of bergson's issue on include_bias: the bias's gradient is a column of its own."""
    op, dense = made(include_bias=include_bias)
    g = torch.randn(op.size, dtype=torch.float64)
    expected = torch.linalg.solve(dense + DAMPING * eye(op.size), g)
    torch.testing.assert_close(op.inverse(DAMPING) @ g, expected, **EXACT)


@pytest.mark.parametrize("power", [-1.0, -0.5])
@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("kind", ["damped", "pseudo", "tikhonov"])
def test_inverses_are_functions_of_the_dense_matrix(kind, corrected, power):
    op, dense = made(corrected=corrected)
    inverses = {
        "damped": lambda v: 1 / (v + DAMPING),
        "pseudo": lambda v: torch.where(v > DAMPING, 1 / v, 0.0),
        "tikhonov": lambda v: v / (v**2 + DAMPING**2),
    }
    expected = function(dense, lambda v: inverses[kind](v) ** -power)
    # the eigenvalues of the dense matrix that should be 0 are rounding, whose root is larger
    bounds = {"rtol": 1e-6, "atol": 1e-6} if kind == "tikhonov" else EXACT
    found = op.inverse(DAMPING, kind, power=power)
    torch.testing.assert_close(matrix(found), expected, **bounds)


def test_a_factored_damping_is_that_of_both_factors():
    op, _ = made()
    for block, found in zip(op.blocks, op.inverse(DAMPING, "factored").blocks, strict=True):
        G = torch.randn(2, *block.layer.shape, dtype=torch.float64)
        for group in range(block.layer.shape[0]):
            S, A = (
                (
                    b.values[group].diag()
                    if b.vectors is None
                    else b.vectors[group] @ b.values[group].diag() @ b.vectors[group].T
                )
                for b in (block.S, block.A)
            )
            pi = math.sqrt((A.trace() / len(A)) / (S.trace() / len(S)))
            left = S + math.sqrt(DAMPING) / pi * eye(len(S))
            right = A + math.sqrt(DAMPING) * pi * eye(len(A))
            expected = torch.linalg.solve(left, G[:, group]) @ right.inverse()
            torch.testing.assert_close(found.multiply(G)[:, group], expected, **EXACT)


def test_a_factored_damping_of_corrected_or_changed_eigenvalues_is_refused():
    for op in (made(corrected=True)[0], made()[0].inverse(DAMPING)):
        with pytest.raises(SkerchError, match="eigenvalues are corrected"):
            op.inverse(DAMPING, "factored")


def test_a_relative_damping_is_of_each_layers_mean_eigenvalue():
    op, _ = made()
    inverse = op.inverse(DAMPING, relative=True)
    for block, found in zip(op.blocks, inverse.blocks, strict=True):
        torch.testing.assert_close(found.values, 1 / (block.values + DAMPING * block.mean))


def test_the_inverse_of_an_inverse_is_the_damped_operator():
    op, dense = made()
    twice = op.inverse(DAMPING).inverse(0.0)
    torch.testing.assert_close(matrix(twice), dense + DAMPING * eye(op.size), **EXACT)


def test_eigenvalues_of_0_have_no_inverse():
    op, _ = made()
    with pytest.raises(SkerchError, match="eigenvalues of 0, which have no inverse"):
        op.inverse(0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pseudo_inverse_leaves_out_zeros_that_were_rounded(dtype):
    torch.manual_seed(0)
    network = nn.Linear(7, 5, bias=False)
    (layer,) = find_layers(network, dict(network.named_parameters())).covered
    S, A = factor(1, 5, rank=2).to(dtype), factor(1, 7, rank=3).to(dtype)
    block = KroneckerBlock.of(layer, decompose(S), decompose(A))
    op = KroneckerOperator({"weight": (5, 7)}, [block], dtype=dtype)
    assert int((op.inverse(0.0, "pseudo").eigenvalues() > 0).sum()) == 2 * 3


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf, "small"])
def test_a_damping_is_a_number_0_or_above(bad):
    op, _ = made()
    for function_of_damping in (op.inverse, op.logdet):
        with pytest.raises(SkerchError, match="must be a finite number, 0 or above"):
            function_of_damping(bad)


def test_fewer_than_no_eigenpairs_are_refused():
    with pytest.raises(SkerchError, match="k=-2 must be a number of eigenpairs"):
        made()[0].top(-2)


def test_scalars_are_those_of_the_dense_matrix():
    op, dense = made()
    values = torch.linalg.eigvalsh(dense).flip(0)
    torch.testing.assert_close(op.eigenvalues(), values, **EXACT)
    damped = dense + DAMPING * eye(op.size)
    assert op.trace() == pytest.approx(float(dense.trace()), rel=1e-12)
    assert op.frobenius_norm() == pytest.approx(float(dense.norm()), rel=1e-12)
    assert op.logdet(DAMPING) == pytest.approx(float(torch.logdet(damped)), rel=1e-10)
    assert op.logdet() == -math.inf


def test_it_is_sketched_and_given_to_scipy():
    op, dense = made()
    values = torch.linalg.eigvalsh(dense).flip(0)[:3]
    found = skerch.seigh(op, outer=3)
    torch.testing.assert_close(found.eigenvalues[:3], values, rtol=1e-8, atol=0.0)
    x = torch.randn(op.size, dtype=torch.float64)
    torch.testing.assert_close(torch.from_numpy(skerch.to_scipy(op) @ x.numpy()), dense @ x)


def test_float32_products_are_near():
    op, dense = made(dtype=torch.float32)
    torch.testing.assert_close(matrix(op).double(), dense, rtol=1e-5, atol=1e-6)


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(6, 4, 20, groups=2, bias=False)


def wide(rank):
    """One layer with groups, of factors A of a given rank; its operator and S, A."""
    torch.manual_seed(1)
    network = Wide()
    (layer,) = find_layers(network, dict(network.named_parameters())).covered
    groups, outputs, inputs = layer.shape
    S, A = factor(groups, outputs), factor(groups, inputs, rank)
    A[1] *= 2
    bases = decompose(S), decompose(A, how="sketched", rank=5)
    assert bases[1].vectors.shape == (groups, inputs, 5)
    return KroneckerOperator(layer.shapes, [KroneckerBlock.of(layer, *bases)], dtype=S.dtype), S, A


@pytest.mark.parametrize("rank", [3, 5])
def test_a_sketched_factor_of_low_rank_is_exact(rank):
    op, S, A = wide(rank)
    dense = torch.block_diag(*(torch.kron(s, a) for s, a in zip(S, A, strict=True)))
    torch.testing.assert_close(matrix(op), dense, rtol=1e-8, atol=1e-9)
    assert op.trace() == pytest.approx(float(dense.trace()))


def test_what_a_sketch_leaves_out_is_one_direction_with_the_mean_of_its_eigenvalues():
    op, S, A = wide(60)
    (block,) = op.blocks
    parts = []
    for group in range(2):
        Q = block.A.vectors[group]
        ls = block.A.values[group]
        approximate = (Q * ls[:-1]) @ Q.T + ls[-1] * (eye(len(Q)) - Q @ Q.T)
        assert float(approximate.trace()) == pytest.approx(float(A[group].trace()))
        parts.append(torch.kron(S[group], approximate))
    dense = torch.block_diag(*parts)
    torch.testing.assert_close(matrix(op), dense, **EXACT)
    torch.testing.assert_close(op.eigenvalues(), torch.linalg.eigvalsh(dense).flip(0), **EXACT)
    inverse = torch.linalg.inv(dense + DAMPING * eye(len(dense)))
    torch.testing.assert_close(matrix(op.inverse(DAMPING)), inverse, **EXACT)
    assert op.logdet(DAMPING) == pytest.approx(-float(torch.logdet(inverse)), rel=1e-10)


def test_a_sketched_factor_of_zeros_has_eigenvalues_of_0():
    basis = decompose(torch.zeros(2, 60, 60), how="sketched", rank=3)
    assert not basis.values.any()
    assert basis.counts.tolist() == [1, 1, 1, 57]


def test_a_tolerance_finds_the_least_rank_that_leaves_so_much():
    torch.manual_seed(0)
    Q = torch.linalg.qr(torch.randn(2, 300, 300, dtype=torch.float64)).Q
    values = 0.9 ** torch.arange(300, dtype=torch.float64)
    F = (Q * values) @ Q.mT
    basis = decompose(F, how="sketched", tol=0.01)
    rank = basis.vectors.shape[-1]
    left = (values[rank:].norm() / values.norm(), values[rank - 2 :].norm() / values.norm())
    assert left[0] < 0.01 * 1.2
    assert left[1] > 0.01 / 1.2
    near = basis.times(torch.eye(300, dtype=torch.float64).expand(2, -1, -1), basis.values[:, None])
    assert float((F - near).norm() / F.norm()) < 0.01 * 1.2


@pytest.mark.parametrize("asked", [{}, {"rank": 0}, {"rank": 3, "tol": 0.1}, {"tol": 0.0}])
def test_a_sketch_needs_a_rank_or_a_tolerance(asked):
    with pytest.raises(SkerchError, match="needs a rank ≥ 1 or a tol between 0 and 1"):
        decompose(torch.eye(99)[None], how="sketched", **asked)


def test_a_factor_too_flat_for_the_tolerance_is_decomposed_exactly():
    assert decompose(torch.eye(200)[None], how="sketched", tol=0.01).is_whole


@pytest.mark.parametrize("project", [None, 4])
def test_autocorrelation_is_the_block_or_its_projection(project):
    network = nn.Linear(3, 3)
    (layer,) = find_layers(network, dict(network.named_parameters())).covered
    F = factor(1, 12)[0]
    method = Autocorrelation(project)
    R = method.sketch(layer)
    C = F if R is None else R @ (R @ F).T
    block = method.block(layer, {"C": C})
    dense = F
    if R is not None:
        rows = R.rows(0, project)
        P = rows.T @ torch.linalg.pinv(rows.T)
        dense = P @ F @ P
    E = torch.eye(12, dtype=torch.float64).view(12, *layer.shape)
    torch.testing.assert_close(block.multiply(E).flatten(1), dense, **EXACT)
    op = KroneckerOperator(layer.shapes, [block], dtype=torch.float64)
    torch.testing.assert_close(op.eigenvalues(), torch.linalg.eigvalsh(dense).flip(0), **EXACT)
    values, V = op.top(op.size)
    assert len(values) == (project or op.size)
    torch.testing.assert_close(op @ V, V * values, **EXACT)


def spectrum(dense, k):
    values, vectors = torch.linalg.eigh(dense)
    return values.flip(0)[:k], vectors.flip(1)[:, :k]


@pytest.mark.parametrize("corrected", [True, False])
def test_top_eigenpairs_are_those_of_the_dense_matrix(corrected):
    op, dense = made(corrected=corrected)
    k = 12
    values, V = op.top(k)
    expected, W = spectrum(dense, k)
    torch.testing.assert_close(values, expected, **EXACT)
    torch.testing.assert_close(V.T @ V, eye(k), **EXACT)
    torch.testing.assert_close(V @ V.T, W @ W.T, rtol=0.0, atol=1e-8)
    torch.testing.assert_close(dense @ V, V * values, **EXACT)


def test_top_eigenpairs_end_before_uncovered_parameters():
    op, dense = made()
    values, V = op.top(op.size)
    assert op.covered - 1 <= len(values) <= op.covered
    torch.testing.assert_close(dense @ V, V * values, **EXACT)
    assert op.inverse(DAMPING).top(3)[0].numel() == 0  # their 1 / δ is the largest


def test_top_eigenpairs_end_before_the_rest_of_a_sketched_factor():
    op, *_ = wide(60)
    values, V = op.top(op.size)
    (block,) = op.blocks
    assert 0 < len(values) < op.size
    torch.testing.assert_close(op @ V, V * values, **EXACT)
    assert values[-1] >= block.values[~block.known].max()
    torch.testing.assert_close(values, op.eigenvalues()[: len(values)], **EXACT)
