"""Curvatures over ranks are those of one process, however data are shared out; errors end all."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from skerch.curvature import (
    DDPEmpiricalFisherOperator,
    DDPFisherOperator,
    DDPGGNOperator,
    DDPHessianOperator,
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    HessianOperator,
    Numbered,
    cross_entropy_loss_of_output,
    label_weight,
    supervised_forward,
    supervised_per_sample_loss,
)
from skerch.curvature.checks import CheckError
from skerch.errors import SkerchError

from ..ranks import failures, raised
from . import cases
from .cases import CROSS_ENTROPY, assert_close, matrix

CLAIMS = []


def claim(function):
    """It is checked by 2 and by 3 ranks."""
    CLAIMS.append(function)
    return function


def share(x, rank, size):
    """The examples of a rank: 9 and 3 of 12 for two ranks; 1, 8 and 3 for three."""
    ends = {1: [0, len(x)], 2: [0, 9, len(x)], 3: [0, 1, 9, len(x)]}[size]
    return x[ends[rank] : ends[rank + 1]]


def batches(case, rank, size, length=2):
    """The examples of a rank in batches."""
    x, y = share(case.x, rank, size), share(case.y, rank, size)
    return list(zip(x.split(length), y.split(length), strict=True))


def whole(case, **options):
    """The operator of one process on all the data."""
    return HessianOperator(case.model, [(case.x, case.y)], case.loss_fn, **options)


@claim
def uneven_shares_have_the_matrix_and_the_loss_of_one_process(rank, size):
    case = cases.make()
    op = DDPHessianOperator(case.model, batches(case, rank, size), case.loss_fn)
    one = whole(case)
    assert_close(matrix(op), case.hessian(), 1e-10)
    assert op.loss() == pytest.approx(one.loss(), rel=1e-14)
    assert torch.equal(op.vector(), one.vector())


@claim
def products_have_the_same_bits_on_all_ranks_and_every_time(rank, size):
    case = cases.make()
    op = DDPHessianOperator(case.model, batches(case, rank, size), case.loss_fn, strategy="batched")
    H = matrix(op)
    assert torch.equal(H, matrix(op))
    others = [torch.empty_like(H) for _ in range(size)]
    dist.all_gather(others, H)
    assert all(torch.equal(H, other) for other in others)


@claim
def every_case_is_that_of_one_process_with_its_weights(rank, size):
    for name in [name for name in cases.NAMES if name != "attention"]:  # whose oracle takes long
        case = cases.make(name)
        op = DDPHessianOperator(
            case.model, case.batches[rank::size], case.loss_fn, batch_weight=case.batch_weight
        )
        assert_close(matrix(op), case.hessian(), case.tolerance)
        assert op.loss() == pytest.approx(float(case.loss().detach()), rel=1e-12)


@claim
def the_ggn_is_that_of_one_process(rank, size):
    case = cases.make()
    outputs = supervised_forward, cross_entropy_loss_of_output()
    op = DDPGGNOperator(case.model, batches(case, rank, size), *outputs)
    assert_close(matrix(op), matrix(GGNOperator(case.model, [(case.x, case.y)], *outputs)))
    assert op.loss() == pytest.approx(float(case.loss().detach()), rel=1e-14)


@claim
def fisher_matrices_are_those_of_one_process_and_so_are_their_draws(rank, size):
    case = cases.make()
    outputs = supervised_forward, cross_entropy_loss_of_output()
    per_sample = supervised_per_sample_loss(nn.functional.cross_entropy)
    data, mine = [(case.x, case.y)], batches(case, rank, size)
    one = matrix(EmpiricalFisherOperator(case.model, data, per_sample))
    assert_close(matrix(DDPEmpiricalFisherOperator(case.model, mine, per_sample)), one)
    one = matrix(FisherOperator(case.model, data, *outputs))
    assert_close(matrix(DDPFisherOperator(case.model, mine, *outputs)), one)
    one = matrix(FisherOperator(case.model, data, *outputs, samples=2, seed=1))
    numbers = share(torch.arange(len(case.x)), rank, size).split(2)
    mine = list(map(Numbered, mine, numbers))
    drawn = {"samples": 2, "seed": 1}
    assert_close(matrix(DDPFisherOperator(case.model, mine, *outputs, **drawn)), one)
    op = DDPFisherOperator(case.model, data, *outputs, **drawn)
    assert "Numbered(batch, index)" in raised(SkerchError, op.loss)


@claim
def a_model_may_be_a_function_of_parameters(rank, size):
    x = torch.arange(4.0).double()[rank:]
    params = {"a": torch.ones(3).double()}
    f = lambda p, x: (p["a"].prod() * x).square().mean()  # noqa: E731
    op = DDPHessianOperator(f, [x], lambda model, x: model(x), params=params)
    a = 2 * sum(float(torch.arange(r, 4).square().sum()) for r in range(size))
    a /= sum(4 - r for r in range(size))  # times ∇² of (abc)² / 2, 1 at a = b = c = 1
    assert_close(matrix(op), a * torch.tensor([[1, 2, 2], [2, 1, 2], [2, 2, 1]]).double())


@claim
def a_rank_without_data_or_with_ignored_labels_alone_adds_nothing(rank, size):
    case = cases.make()
    one = whole(case)
    data = [(case.x, case.y)] if rank == 0 else []
    op = DDPHessianOperator(case.model, data, case.loss_fn)
    assert_close(matrix(op), case.hessian(), 1e-10)
    assert op.loss() == pytest.approx(one.loss(), rel=1e-14)
    ignored = torch.full_like(case.y, -100)
    data = [(case.x, case.y if rank == size - 1 else ignored)]
    op = DDPHessianOperator(case.model, data, case.loss_fn, batch_weight=label_weight())
    assert_close(matrix(op), case.hessian(), 1e-10)


@claim
def no_data_at_all_are_an_error_of_all(rank, size):
    op = DDPHessianOperator(cases.make().model, [], CROSS_ENTROPY)
    assert "No rank has a batch" in raised(SkerchError, op.loss)
    assert "No rank has a batch" in raised(SkerchError, lambda: matrix(op))


@claim
def the_only_batch_of_a_rank_has_a_known_weight(rank, size):
    model = nn.Linear(2, 1)
    data = [{"x": torch.ones(3, 2), "scales": torch.ones(5)}]
    op = DDPHessianOperator(model, data, lambda f, b: f(b["x"]).square().mean())
    assert "batch_weight" in raised(SkerchError, op.loss)


@claim
def a_model_in_ddp_is_taken_out_of_it(rank, size):
    case = cases.make()
    model = DistributedDataParallel(case.model)
    op = DDPHessianOperator(model, batches(case, rank, size), case.loss_fn)
    assert list(op.params) == [name for name, _ in case.model.named_parameters()]
    assert_close(matrix(op), case.hessian(), 1e-10)
    assert all(p.grad is None for p in case.model.parameters())


@claim
def an_error_on_one_rank_ends_all_with_its_words(rank, size):
    case = cases.make()
    last = size - 1

    def loss_fn(model, batch):
        if rank == last:
            raise ValueError("the fourth image is broken")
        return CROSS_ENTROPY(model, batch)

    op = DDPHessianOperator(case.model, batches(case, rank, size), loss_fn)
    for work in (op.loss, op.verify, lambda: matrix(op)):
        message = raised(ValueError, work)
        told = f"Rank {last} of {size} failed: " if rank != last else ""
        assert message == f"{told}the fourth image is broken"
    model = case.model if rank else case.model.requires_grad_(False)
    assert "requires_grad" in raised(
        SkerchError, lambda: DDPHessianOperator(model, batches(case, rank, size), CROSS_ENTROPY)
    )


@claim
def a_guard_that_refuses_one_ranks_data_ends_all(rank, size):
    case = cases.make()
    noisy = rank == 0

    def loss_fn(model, batch):
        return CROSS_ENTROPY(model, batch) * (1 + noisy * torch.rand(()).double())

    op = DDPHessianOperator(case.model, batches(case, rank, size), loss_fn)
    message = raised(SkerchError, lambda: op @ op.vector())
    assert "is then" in message or "and then" in message
    assert isinstance(raised(CheckError if noisy else SkerchError, op.verify), str)


@claim
def networks_and_vectors_that_differ_between_ranks_are_refused(rank, size):
    case = cases.make()
    op = DDPHessianOperator(case.model, batches(case, rank, size), case.loss_fn)
    v = torch.randn(op.size, generator=torch.Generator().manual_seed(rank)).double()
    assert "different vectors" in raised(SkerchError, lambda: op @ v)
    wrong = v.float() if rank == 0 else v
    message = raised(SkerchError, lambda: op @ wrong)
    assert "dtype torch.float32" in message
    assert ("Rank 0" in message) == (rank > 0)
    with torch.no_grad():
        next(case.model.parameters())[0] += 1e-15 * rank
    assert "differ in their parameters" in raised(SkerchError, lambda: op @ torch.ones_like(v))
    names = None if rank else "0.weight"
    make = lambda: DDPHessianOperator(case.model, [], case.loss_fn, param_filter=names)  # noqa: E731
    assert "The ranks select" in raised(SkerchError, make)


@claim
def half_precisions_are_summed_in_float32(rank, size):
    model = nn.Linear(1, 1, bias=False).bfloat16()
    data = [torch.tensor([[1.0 if rank == 0 else 2.0**-5]]).bfloat16()]
    weight = lambda x: 1.0 if rank == 0 else 0.3  # noqa: E731
    loss = lambda f, x: f(x).square().mean() / 2  # noqa: E731
    op = DDPHessianOperator(model, data, loss, batch_weight=weight, check=False)
    others = 0.3 * (size - 1)
    exact = (1 + others * 2.0**-10) / (1 + others)
    assert float(op @ torch.ones(1)) == pytest.approx(exact, rel=1e-6)


@claim
def a_frozen_operator_has_the_same_products(rank, size):
    case = cases.make()
    op = DDPHessianOperator(case.model, batches(case, rank, size, 12), case.loss_fn)
    with op.frozen():
        assert_close(matrix(op), case.hessian(), 1e-10)
        assert_close(matrix(op), case.hessian(), 1e-10)
        assert op.loss() == pytest.approx(float(case.loss().detach()))


@claim
def a_process_group_is_of_the_ranks_that_it_names(rank, size):
    case = cases.make()
    group = dist.new_group([0])
    make = lambda: DDPHessianOperator(  # noqa: E731
        case.model, [(case.x, case.y)], case.loss_fn, process_group=group
    )
    if rank == 0:
        assert_close(matrix(make()), case.hessian(), 1e-10)
    else:
        assert "no rank of the process_group" in raised(SkerchError, make)


@pytest.fixture(scope="module", params=[2, 3])
def failed(request, tmp_path_factory):
    return failures(CLAIMS, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [claim.__name__ for claim in CLAIMS])
def test_ranks_see_that(name, failed):
    assert not failed[name], failed[name]


def test_a_process_alone_is_the_only_rank():
    case = cases.make()
    op = DDPHessianOperator(case.model, [(case.x, case.y)], case.loss_fn)
    assert_close(matrix(op), case.hessian(), 1e-10)
