"""Vectors that are shared out by rows have the inner products and the numbers of one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from skerch.errors import ShapeError, SkerchError
from skerch.krylov import (
    DistributedBackend,
    ShardedOperator,
    SingleDeviceBackend,
    backend,
    choose_damping,
    conjugate_gradients,
    deflated_power_iteration,
    diagonal,
    frobenius_norm,
    hutch_plus_plus,
    hutchinson,
    lanczos,
    lanczos_tridiagonal,
    row_norms,
    spectral_density,
    xnystrace,
    xtrace,
)
from skerch.linops import aslinearoperator
from skerch.ranks import Ranks

from ..ranks import failures, raised

N = 23
CLAIMS = []


def claim(function):
    """It is checked by 2 and by 3 ranks."""
    CLAIMS.append(function)
    return function


def backends(rank, size):
    """Backends with contiguous rows, with every other row, and with one rank that has none."""
    scattered = torch.arange(N)[rank::size]
    lopsided = range(N) if rank == 1 else range(0)
    return [
        DistributedBackend(),
        DistributedBackend(rows=scattered),
        DistributedBackend(rows=lopsided),
    ]


def here(rows, X):
    return X[rows.start : rows.stop] if isinstance(rows, range) else X[rows]


def assert_same_on_all_ranks(tensor, size):
    others = [torch.empty_like(tensor) for _ in range(size)]
    dist.all_gather(others, tensor.contiguous())
    assert all(torch.equal(tensor, other) for other in others)


@claim
def inner_products_are_those_of_one_process_with_the_same_bits_on_all_ranks(rank, size):
    one = SingleDeviceBackend()
    torch.manual_seed(0)
    A, B = torch.randn(N, 4), torch.randn(N, 4)
    for ours in backends(rank, size):
        a, b = here(ours.rows(N), A), here(ours.rows(N), B)
        for of_ranks, alone in [
            (ours.inner(a, b), one.inner(A, B)),
            (ours.dots(a, b), one.dots(A, B)),
            (ours.dot(a, b), one.dot(A, B)),
            (ours.norm(a), one.norm(A)),
        ]:
            torch.testing.assert_close(of_ranks, alone)
            assert_same_on_all_ranks(of_ranks, size)


@claim
def random_vectors_are_those_of_one_process(rank, size):
    like, drawn_rows = torch.empty(0, dtype=torch.float64), backend.DRAWN_ROWS
    backend.DRAWN_ROWS = 8
    how = {"size": N, "seed": 3, "role": "estimate"}
    try:
        for ours in backends(rank, size):
            rows = ours.rows(N)
            for law in ("randn", "rademacher"):
                whole = getattr(SingleDeviceBackend(), law)(like, [0, 5], **how)
                assert torch.equal(getattr(ours, law)(like, [0, 5], **how), here(rows, whole))
                law += "_like"
                generators = [torch.Generator().manual_seed(7) for _ in range(2)]
                a = torch.empty(len(rows), 2)
                part = getattr(ours, law)(a, generator=generators[0])
                whole = getattr(SingleDeviceBackend(), law)(
                    torch.empty(N, 2), generator=generators[1]
                )
                assert torch.equal(part, here(rows, whole))
    finally:
        backend.DRAWN_ROWS = drawn_rows


@claim
def a_fresh_seed_is_the_same_on_all_ranks(rank, size):
    seeds = [DistributedBackend().seed(None) for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert_same_on_all_ranks(torch.tensor(seeds), size)
    assert DistributedBackend().seed(2**62) == 2**62
    different = lambda: DistributedBackend().seed(rank)  # noqa: E731
    assert "the seeds 0, 1" in raised(SkerchError, different)
    assert "non-negative" in raised(SkerchError, lambda: DistributedBackend().seed(-1))


@claim
def an_operator_of_whole_vectors_has_the_rows_of_its_products(rank, size):
    torch.manual_seed(0)
    A, X = torch.randn(N, N), torch.randn(N, 3)
    A = A + A.T
    for ours in backends(rank, size):
        rows = ours.rows(N)
        op = ShardedOperator(aslinearoperator(A, self_adjoint=True), ours)
        torch.testing.assert_close(op @ here(rows, X), here(rows, A @ X))
        torch.testing.assert_close(op @ here(rows, X[:, 0]), here(rows, A @ X[:, 0]))
    op = ShardedOperator(aslinearoperator(A, self_adjoint=True), DistributedBackend())
    assert "multiplies" in raised(ShapeError, lambda: op @ X)


@claim
def conjugate_gradients_take_the_steps_of_one_process(rank, size):
    torch.manual_seed(0)
    A = torch.diag(0.8 ** torch.arange(N)).double()
    A, M, B = A + 1, torch.diag(1 / (A.diag() + 0.1)), torch.randn(N, 3).double()
    one = conjugate_gradients(A, B, damping=0.1, preconditioner=M, tol=1e-8)
    found = choose_damping(A, lambda _: M, B, damping=0.1, dampings=[1])
    for ours in backends(rank, size):
        shard = [ShardedOperator(aslinearoperator(K, self_adjoint=True), ours) for K in (A, M)]
        inverse = {1.0: shard[1]}.get
        b = here(ours.rows(N), B)
        many = conjugate_gradients(shard[0], b, damping=0.1, preconditioner=shard[1], tol=1e-8)
        assert (many.iterations, many.products) == (one.iterations, one.products)
        torch.testing.assert_close(many.solution, here(ours.rows(N), one.solution))
        single = conjugate_gradients(shard[0], b[:, 0], damping=0.1, tol=1e-8)
        torch.testing.assert_close(single.solution, many.solution[:, 0], rtol=1e-6, atol=1e-6)
        again = choose_damping(shard[0], inverse, b, damping=0.1, dampings=[1])
        torch.testing.assert_close(again.errors, found.errors)


@claim
def lanczos_takes_the_steps_of_one_process(rank, size):
    n = 200
    A = aslinearoperator(torch.diag(0.9 ** torch.arange(n)).double(), self_adjoint=True)
    for options in ({}, {"block_size": 3, "basis_size": 20}):
        options |= {"k": 5, "tol": 1e-8, "seed": 1}
        one = lanczos(A, **options)
        ours = lanczos(ShardedOperator(A, DistributedBackend()), **options)
        assert (ours.iterations, ours.products) == (one.iterations, one.products)
        torch.testing.assert_close(ours.eigenvalues, one.eigenvalues, rtol=1e-12, atol=0)
        rows = DistributedBackend().rows(n)
        part = one.eigenvectors[:, rows.start : rows.stop]
        torch.testing.assert_close(ours.eigenvectors.abs(), part.abs(), rtol=0, atol=1e-6)
        assert_same_on_all_ranks(ours.residuals, size)


@claim
def estimates_are_those_of_one_process_from_the_same_products(rank, size):
    n = 60
    A = aslinearoperator(torch.diag(0.9 ** torch.arange(n)).double(), self_adjoint=True)
    sharded, rows = ShardedOperator(A, DistributedBackend()), DistributedBackend().rows(n)

    def both(algorithm, **options):
        return algorithm(sharded, seed=1, **options), algorithm(A, seed=1, **options)

    for method in (hutchinson, hutch_plus_plus, xtrace, xnystrace):
        number = "num_samples" if method is hutchinson else "num_matvecs"
        ours, one = both(method, **{number: 24})
        assert ours.estimate == pytest.approx(one.estimate, rel=1e-10)
        assert ours.products == one.products
        assert_same_on_all_ranks(torch.tensor(ours.estimate), size)
    for method in ("hutchinson", "xdiag", "xnysdiag"):
        ours, one = both(diagonal, method=method, num_matvecs=24)
        torch.testing.assert_close(ours.estimate, one.estimate[rows.start : rows.stop])
    ours, one = both(row_norms, num_matvecs=24)
    torch.testing.assert_close(ours.estimate, one.estimate[rows.start : rows.stop])
    ours, one = both(frobenius_norm, num_matvecs=24)
    assert ours.value == pytest.approx(one.value, rel=1e-10)
    ours, one = both(spectral_density, num_runs=3, lanczos_steps=20)
    torch.testing.assert_close(ours.density, one.density, rtol=1e-6, atol=1e-6)
    assert_same_on_all_ranks(ours.density, size)


@claim
def power_iteration_and_tridiagonal_matrices_are_those_of_one_process(rank, size):
    n = 60
    A = aslinearoperator(torch.diag(0.5 ** torch.arange(n)).double(), self_adjoint=True)
    sharded, rows = ShardedOperator(A, DistributedBackend()), DistributedBackend().rows(n)
    ours, one = (deflated_power_iteration(op, k=3, seed=1) for op in (sharded, A))
    torch.testing.assert_close(ours.eigenvalues, one.eigenvalues)
    v = torch.randn(n, generator=torch.Generator().manual_seed(0)).double()
    ours = lanczos_tridiagonal(sharded, v[rows.start : rows.stop], 10)
    one = lanczos_tridiagonal(A, v, 10)
    torch.testing.assert_close((ours.alphas, ours.betas), (one.alphas, one.betas))


@claim
def ranks_without_rows_take_the_steps_of_the_others(rank, size):
    n = 60
    A = aslinearoperator(torch.diag(0.9 ** torch.arange(n)).double(), self_adjoint=True)
    backend = DistributedBackend(rows=range(n) if rank == 1 else range(0))
    op, here = ShardedOperator(A, backend), backend.rows(n)
    one, ours = (spectral_density(a, lanczos_steps=8, seed=1) for a in (A, op))
    torch.testing.assert_close(ours.cumulative, one.cumulative, rtol=0, atol=1e-9)
    one, ours = (deflated_power_iteration(a, k=2, tol=1e-3, seed=1) for a in (A, op))
    torch.testing.assert_close(ours.eigenvalues, one.eigenvalues, rtol=1e-10, atol=0)
    one, ours = (diagonal(a, num_matvecs=12, seed=1) for a in (A, op))
    part = one.estimate[here.start : here.stop]
    torch.testing.assert_close(ours.estimate, part, rtol=0, atol=1e-7)
    one, ours = (row_norms(a, num_matvecs=2000, tol=0.1, seed=1) for a in (A, op))
    assert ours.products == one.products


@claim
def what_fails_on_one_rank_fails_on_all_in_its_words(rank, size):
    ranks = Ranks.of_group()

    def work():
        if rank == 1:
            raise SkerchError(10 * "Maße fehlen. " + 3000 * "!")
        return "made", (rank, 0.5)

    message = raised(SkerchError, lambda: ranks.each(work, 2))
    assert ("Rank 1 of" in message) == (rank != 1)
    assert "Maße fehlen" in message
    made, table = ranks.each(lambda: ("made", (rank, 0.5)), 2)
    assert made == "made"
    assert table.tolist() == [[r, 0.5] for r in range(size)]


@pytest.fixture(scope="module", params=[2, 3])
def failed(request, tmp_path_factory):
    return failures(CLAIMS, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [claim.__name__ for claim in CLAIMS])
def test_ranks_see_that(name, failed):
    assert not failed[name], failed[name]
