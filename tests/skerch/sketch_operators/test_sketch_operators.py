"""Sketch operators, against dense matrices, SciPy's transform and the statistics they promise."""

import numpy as np
import pytest
import scipy.fft
import torch
import torch_dct

from skerch.errors import ShapeError, SkerchError
from skerch.sketch_operators import KINDS, base, make, sparse_sign, ssrft

SHAPE = (20, 101)  # 101 is odd and no fast length
every_kind = pytest.mark.parametrize("kind", KINDS)


def double(kind, shape=SHAPE, seed=3, role="omega"):
    return make(kind, shape, seed=seed, role=role, dtype=torch.float64)


@pytest.fixture
def several_chunks(monkeypatch):
    """Small enough limits that products and draws take several steps."""
    monkeypatch.setattr(base, "MOST_BLOCK_BYTES", 3 * SHAPE[1] * 8)
    monkeypatch.setattr(sparse_sign, "CHUNK_COORDINATES", 32)


@every_kind
@pytest.mark.usefixtures("several_chunks")
def test_products_and_adjoint_products_are_those_of_the_rows(kind):
    S = double(kind)
    dense = S.rows(0, 20)
    X, Y = torch.randn(101, 4, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64)
    torch.testing.assert_close(S @ X, dense @ X, rtol=0, atol=1e-12)
    torch.testing.assert_close(S @ X.T.contiguous().T, dense @ X, rtol=0, atol=1e-12)
    torch.testing.assert_close(S @ X[:, 0], dense @ X[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(S.T @ Y, dense.T @ Y, rtol=0, atol=1e-12)


@every_kind
def test_isometry_in_expectation(kind):
    """The mean of ‖Sx‖² over 2000 seeds is within 4 standard errors of ‖x‖² (about 2 %)."""
    x = torch.cat([torch.ones(3), torch.linspace(-1, 1, 98)]).double()
    x /= torch.linalg.norm(x)
    squares = torch.stack(
        [torch.linalg.norm(double(kind, seed=seed) @ x) ** 2 for seed in range(2000)]
    )
    error = squares.std() / 2000**0.5
    assert error < 0.01
    assert abs(squares.mean() - 1) < 4 * error


@every_kind
def test_rows_have_the_same_bits_in_blocks_of_any_size(kind):
    S = make(kind, SHAPE, seed=3, role="omega")
    whole = S.rows(0, 20)
    assert whole.shape == SHAPE
    assert whole.is_contiguous()
    assert S.rows(4, 4).shape == (0, 101)
    for size in (1, 7):
        pieces = [S.rows(i, min(i + size, 20)) for i in reversed(range(0, 20, size))]
        assert torch.equal(torch.cat(pieces[::-1]), whole)
    again = make(kind, SHAPE, seed=3, role="omega")
    again @ torch.randn(101)
    assert torch.equal(again.rows(13, 20), whole[13:])


@every_kind
def test_rows_are_the_same_map_in_every_dtype(kind):
    single = make(kind, SHAPE, seed=3, role="omega").rows(0, 20)
    assert torch.equal(single, double(kind).rows(0, 20).float())


@every_kind
def test_bits_do_not_depend_on_the_number_of_threads(kind):
    threads = torch.get_num_threads()
    x = torch.randn(90_001)
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            S = make(kind, (12, 90_001), seed=3, role="omega")
            results.append((S.rows(0, 12), S @ x))
    finally:
        torch.set_num_threads(threads)
    (rows, product), (rows_of_two, product_of_two) = results
    assert torch.equal(rows, rows_of_two)
    if kind in ("sparse_sign", "ssrft"):
        assert torch.equal(product, product_of_two)


@every_kind
def test_roles_and_neighbouring_seeds_share_no_row_and_do_not_correlate(kind):
    shape = (16, 4000)
    maps = [
        make(kind, shape, seed=seed, role=role).rows(0, 16)
        for role in ("omega", "psi", "probe")
        for seed in range(5, 16)
    ]
    rows = torch.nn.functional.normalize(torch.cat(maps))
    correlations = rows @ rows.T - torch.eye(len(rows))
    # 139 000 pairs, each of standard deviation 1/sqrt(4000)
    assert correlations.abs().max() < 6 / 4000**0.5


@pytest.mark.parametrize("n", [120, 101])
def test_ssrft_rows_are_orthogonal_where_nothing_is_padded(n):
    S = double("ssrft", shape=(n // 2, n))
    assert S.padded == scipy.fft.next_fast_len(n, real=True)
    gram = S.rows(0, n // 2) @ S.rows(0, n // 2).T * (n // 2) / S.padded
    error = (gram - torch.eye(n // 2)).abs().max()
    assert error < 1e-13 if S.padded == n else 1e-3 < error < 1


@pytest.mark.parametrize("n", [120, 105])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_cosine_transforms_are_the_orthonormal_one(n, dtype):
    X = torch.randn(3, n, dtype=dtype)
    k, i = torch.arange(n)[:, None], torch.arange(n)
    angles = torch.pi / (2 * n) * (k * (2 * i + 1) % (4 * n)).double()
    F = angles.cos() * (2 / n) ** 0.5
    F[0] /= 2**0.5
    tolerance = {"rtol": 0, "atol": 50 * torch.finfo(dtype).eps}
    for forward, inverse in (
        (ssrft.cosine_transform, ssrft.inverse_cosine_transform),
        (lambda x: torch_dct.dct(x, norm="ortho"), lambda x: torch_dct.idct(x, norm="ortho")),
    ):
        torch.testing.assert_close(forward(X), (X.double() @ F.T).to(dtype), **tolerance)
        torch.testing.assert_close(inverse(X), (X.double() @ F).to(dtype), **tolerance)


@pytest.mark.parametrize("s", [1, 3, 8, 9, 40])
def test_sparse_sign_has_its_nonzeros_at_distinct_uniform_rows(s):
    n = 40_000  # more than one chunk
    S = make("sparse_sign", (s, n), seed=0, role="omega").rows(0, s)
    nonzeros = min(8, s)
    assert torch.equal((S != 0).sum(0), torch.full((n,), nonzeros))
    assert set(S.unique().tolist()) <= {0.0, *S.abs().max().item() * np.array([-1.0, 1.0])}
    torch.testing.assert_close((S**2).sum(0), torch.ones(n), rtol=1e-6, atol=0)
    share = nonzeros / s
    spread = (n * share * (1 - share)) ** 0.5
    assert ((S != 0).sum(1) - n * share).abs().max() <= 5 * spread
    assert S.sign().sum(1).abs().max() <= 5 * (n * share) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("b", [3, 8])
def test_sparse_sign_product_of_a_column_has_the_same_bits_in_any_block(b, dtype):
    S = make("sparse_sign", (50, 70_000), seed=0, role="psi", dtype=dtype)
    X = torch.randn(b, 70_000, dtype=dtype).T
    product = S @ X
    assert torch.equal(S @ X.contiguous(), product)
    assert torch.equal(S @ X[:, 1], product[:, 1])


def test_gaussian_and_rademacher_entries_have_their_distribution():
    gaussian = double("gaussian", shape=(50, 4000)).rows(0, 50).flatten() * 50**0.5
    moments = torch.stack([(gaussian**p).mean() for p in (1, 2, 3, 4)])
    expected = torch.tensor([0.0, 1.0, 0.0, 3.0]).double()
    spread = (torch.tensor([1.0, 2.0, 15.0, 96.0]).double() / len(gaussian)).sqrt()
    assert ((moments - expected).abs() < 4 * spread).all()
    signs = double("rademacher", shape=(50, 4001)).rows(0, 50) * 50**0.5
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs), rtol=1e-7, atol=0)
    assert signs.mean().abs() < 4 / signs.numel() ** 0.5


@every_kind
def test_what_cannot_be_drawn_is_refused_with_a_way_out(kind):
    with pytest.raises(ShapeError, match=r"at least one row"):
        make(kind, (0, 5), seed=0, role="omega")
    with pytest.raises(SkerchError, match=r"non-negative integer, not -1"):
        make(kind, SHAPE, seed=-1, role="omega")
    with pytest.raises(SkerchError, match=r"'left'; the roles are omega, psi"):
        make(kind, SHAPE, seed=0, role="left")
    with pytest.raises(SkerchError, match=r"torch.complex64: only real"):
        make(kind, SHAPE, seed=0, role="omega", dtype=torch.complex64)
    with pytest.raises(ShapeError, match=r"stop <= 20"):
        double(kind).rows(19, 21)


def test_unknown_kind_and_unfitting_ssrft_are_refused():
    with pytest.raises(SkerchError, match=r"'gauss'; the kinds are gaussian, rademacher"):
        make("gauss", SHAPE, seed=0, role="omega")
    with pytest.raises(ShapeError, match=r"at most 10 rows"):
        make("ssrft", (11, 10), seed=0, role="omega")
    with pytest.raises(ShapeError, match=r"not torch.float16"):
        make("ssrft", SHAPE, seed=0, role="omega", dtype=torch.float16)
