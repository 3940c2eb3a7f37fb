"""The sketched singular value decomposition against the exact one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import scipy.sparse
import torch

from skerch import synthmat
from skerch.decompositions.ssvd import ssvd
from skerch.errors import SkerchError
from skerch.linops import aslinearoperator
from skerch.sketch_operators import KINDS

SHAPE, OUTER = (220, 160), 16
INDEX = torch.arange(1, SHAPE[1] + 1).double()


def sparse(shape, seed=1):
    return torch.from_numpy(scipy.sparse.random(*shape, 0.03, rng=seed).toarray())


def general(spectrum, shape=SHAPE):
    return synthmat.general(spectrum, shape, seed=0)[0]


MATRICES = {
    "flat": lambda: sparse(SHAPE),
    "wide and flat": lambda: sparse(SHAPE[::-1]),
    "all equal": lambda: general(torch.ones_like(INDEX)),
    "1/i": lambda: general(1 / INDEX),
    "wide 1/√i": lambda: general(INDEX**-0.5, SHAPE[::-1]),
    "exponential": lambda: general(10 ** (-0.04 * INDEX)),
    "low rank and noise": lambda: synthmat.lowrank_noise(SHAPE, 8, 0.1, seed=0),
    "as many equal ones as wanted, then a slow tail": lambda: general(
        torch.where(INDEX <= OUTER, 1.0, 0.1 / INDEX)
    ),
}


def error(A, result, rank=None):
    U, V = result.left_vectors[:, :rank].double(), result.right_vectors[:, :rank].double()
    return float(torch.linalg.norm(A - (U * result.singular_values[:rank]) @ V.T))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MATRICES)
def test_error_is_near_the_best_below_that_of_zero_and_known(name, dtype):
    A = MATRICES[name]()
    exact = torch.from_numpy(np.linalg.svd(A.numpy(), compute_uv=False))
    best, zero = (float(torch.linalg.norm(exact[rank:])) for rank in (OUTER, 0))
    rounding = 10 * torch.finfo(dtype).eps * zero
    for seed in range(3):
        result = ssvd(A.to(dtype), outer=OUTER, seed=seed)
        assert best - rounding <= error(A, result) < min(1.05 * best, zero)
        assert (result.singular_values <= exact[:OUTER] + rounding).all()
        assert result.health["adjoint_defect"] < 10 * torch.finfo(dtype).eps
        for rank in (0, OUTER // 2, OUTER):
            assert float(result.residual[rank]) == pytest.approx(error(A, result, rank), rel=0.1)
        for W in (result.left_vectors, result.right_vectors):
            assert W.dtype == dtype
            torch.testing.assert_close(W.double().T @ W.double(), torch.eye(OUTER).double())


def test_more_products_are_more_rounds_and_a_smaller_error():
    A = MATRICES["flat"]()
    best = float(torch.linalg.norm(torch.linalg.svdvals(A)[OUTER:]))
    ratios = [
        error(A, ssvd(A, outer=OUTER, inner=rounds * OUTER)) / best for rounds in (1, 2, 3, 4)
    ]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 1.005


@pytest.mark.parametrize("kind", KINDS)
def test_every_sketch_serves(kind):
    A = MATRICES["1/i"]()
    found = ssvd(A, outer=OUTER, sketch=kind).singular_values
    torch.testing.assert_close(found[:4], 1 / INDEX[:4], rtol=1e-4, atol=0)


@pytest.mark.parametrize("inner", [OUTER, 2 * OUTER + 3])
def test_products_are_those_that_the_docstring_promises(inner):
    A, spent, widths = MATRICES["1/i"](), Counter(), set()

    def counted(name, matrix):
        def multiply(X):
            spent[name] += X.shape[1]
            widths.add(X.shape[1])
            return matrix @ X

        return multiply

    op = aslinearoperator(
        counted("A", A), shape=SHAPE, dtype=A.dtype, adjoint=counted("adjoint", A.T)
    )
    result = ssvd(op, outer=OUTER, inner=inner, probes=5, block_size=7)
    assert spent == {"A": inner + 5, "adjoint": inner}
    assert max(widths) == 7
    whole = ssvd(A, outer=OUTER, inner=inner, probes=5)
    torch.testing.assert_close(result.singular_values, whole.singular_values)


@pytest.mark.parametrize("shape", [(60, 25), (25, 60), (25, 25)])
def test_all_triplets_are_the_decomposition_itself(shape):
    A = general(10 ** (-0.3 * INDEX[:25]), shape)
    result = ssvd(A, outer=25)
    exact = torch.from_numpy(np.linalg.svd(A.numpy(), compute_uv=False))
    torch.testing.assert_close(result.singular_values, exact, rtol=0, atol=1e-15)
    assert error(A, result) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_operator_of_low_rank_has_so_many_triplets_and_zero_none(dtype):
    diagonal = torch.zeros(80, 50).double()
    diagonal[:5, :5] = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5]))
    result = ssvd(diagonal.to(dtype), outer=12)
    exact = torch.tensor([8, 4, 2, 1, 0.5]).double()
    tolerance = 3 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.singular_values, exact, rtol=tolerance, atol=0)
    assert error(diagonal, result) < 10 * tolerance
    nothing = ssvd(torch.zeros(80, 50, dtype=dtype), outer=12)
    assert nothing.singular_values.numel() == 0
    assert nothing.left_vectors.shape == (80, 0)
    assert nothing.residual.tolist() == [0.0]
    assert nothing.health == {"adjoint_defect": 0.0}


def test_a_scaled_operator_has_scaled_singular_values():
    A = aslinearoperator(MATRICES["1/i"]())
    plain, scaled = (ssvd(scale * A, outer=OUTER).singular_values for scale in (1, 1e-30))
    torch.testing.assert_close(scaled * 1e30, plain)


def test_a_wrong_adjoint_is_refused_and_an_inexact_one_is_seen():
    A = MATRICES["exponential"]()
    noise = torch.randn(SHAPE[::-1], generator=torch.Generator().manual_seed(0)).double()
    noise *= torch.linalg.norm(A) / torch.linalg.norm(noise)

    def with_adjoint(matrix):
        return aslinearoperator(
            lambda X: A @ X, shape=SHAPE, dtype=A.dtype, adjoint=lambda X: matrix @ X
        )

    for wrong in (2 * A.T, -A.T, A.T + 0.02 * noise, 0 * A.T):
        with pytest.raises(SkerchError, match=r"differ by .* of their size; correct its adjoint"):
            ssvd(with_adjoint(wrong), outer=OUTER)
    defect = ssvd(with_adjoint(A.T + 1e-6 * noise), outer=OUTER).health["adjoint_defect"]
    assert 1e-7 < defect < 1e-5
    skew = A[: SHAPE[1]] - A[: SHAPE[1]].T
    with pytest.raises(SkerchError, match="or a declared self_adjoint"):
        ssvd(aslinearoperator(skew, self_adjoint=True), outer=OUTER)


def test_what_cannot_be_decomposed_is_refused_with_its_bounds():
    A = torch.eye(60, 50)
    sizes = r"shape \(60, 50\) needs 1 ≤ outer ≤ inner ≤ 50 and at least 2 probes, not outer="
    for wrong in ({"outer": 0}, {"outer": 9, "inner": 8}, {"outer": 9, "inner": 51}):
        with pytest.raises(SkerchError, match=sizes):
            ssvd(A, **wrong)
    with pytest.raises(SkerchError, match=r"outer=9, inner=18, probes=1"):
        ssvd(A, outer=9, probes=1)
    with pytest.raises(SkerchError, match="block_size=-1 must be at least 1"):
        ssvd(A, outer=9, block_size=-1)
    with pytest.raises(SkerchError, match="NaN or an infinity"):
        ssvd(A.log(), outer=9)
    with pytest.raises(SkerchError, match="no adjoint product; give it one"):
        ssvd(aslinearoperator(lambda X: A @ X, shape=(60, 50)), outer=9)


def test_the_defaults_are_those_of_the_documents():
    A = MATRICES["1/i"]()
    said = {"inner": 2 * OUTER, "sketch": "sparse_sign", "probes": 30, "seed": 0, "block_size": 64}
    default, explicit = ssvd(A, outer=OUTER), ssvd(A, outer=OUTER, **said)
    assert torch.equal(default.left_vectors, explicit.left_vectors)
    assert torch.equal(default.residual, explicit.residual)
