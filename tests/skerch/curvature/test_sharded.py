"""Products of networks under FSDP2, with sharded vectors, are those of one process."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from skerch.curvature import (
    DDPHessianOperator,
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    cross_entropy_loss_of_output,
    supervised_forward,
    supervised_per_sample_loss,
)
from skerch.curvature.sharded import (
    FSDPEmpiricalFisherOperator,
    FSDPFisherOperator,
    FSDPGGNOperator,
    FSDPHessianOperator,
)
from skerch.errors import SkerchError
from skerch.krylov import lanczos

from ..ranks import failures, raised
from . import cases
from .cases import assert_close, matrix

CASES = ["mlp", "convolution", "tied weights", "class weights"]
CLAIMS = []


def claim(function):
    """It is checked by 2 and by 3 ranks."""
    CLAIMS.append(function)
    return function


def sharded(model, size, tied=False, **options):
    """The model, its layers unless they are tied, and the rest under `fully_shard`."""
    options = {"mesh": init_device_mesh("cpu", (size,)), **options}
    for layer in [] if tied else model.children():
        if list(layer.parameters()):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def assert_rows_of(H, op, tolerance=1e-10):
    """The operator has the rows that it says of all columns of H."""
    rows = op.rows()
    assert_close(op @ torch.eye(op.size, dtype=op.dtype)[rows], H[rows], tolerance)


@claim
def every_case_is_that_of_one_process(rank, size):
    for name in CASES:
        case = cases.make(name)
        H, vector = case.hessian(), case.operator(HessianOperator).vector()
        op = FSDPHessianOperator(
            sharded(case.model, size, name == "tied weights"),
            case.batches[rank::size],
            case.loss_fn,
            batch_weight=case.batch_weight,
        )
        assert_rows_of(H, op, case.tolerance)
        assert op.loss() == pytest.approx(float(case.loss().detach()), rel=1e-12)
        assert torch.equal(op.vector(), vector[op.rows()])
        one = torch.arange(1.0, op.size + 1, dtype=op.dtype)
        assert_close(op @ one[op.rows()], (H @ one)[op.rows()], case.tolerance)


@claim
def all_the_data_on_every_rank_have_the_same_products(rank, size):
    case = cases.make()
    H = case.hessian()
    op = FSDPHessianOperator(sharded(case.model, size), case.batches, case.loss_fn)
    assert_rows_of(H, op)
    data = case.batches if rank == 0 else []
    assert_rows_of(H, FSDPHessianOperator(case.model, data, case.loss_fn))


@claim
def some_parameters_of_layers_that_are_sharded_along_columns_have_their_block(rank, size):
    case = cases.make()
    H = case.hessian()
    names = [name for name, _ in case.model.named_parameters()]
    columns = lambda p: Shard(1) if p.ndim == 2 and p.shape[1] % size == 0 else None  # noqa: E731
    model = sharded(case.model, size, shard_placement_fn=columns)
    op = FSDPHessianOperator(model, case.batches[rank::size], case.loss_fn)
    assert_rows_of(H, op)
    n = case.model.get_parameter(names[0]).numel()
    part = FSDPHessianOperator(model, case.batches, case.loss_fn, param_filter=names[0])
    assert_rows_of(H[:n, :n], part)


@claim
def lanczos_and_other_curvatures_are_those_of_one_process(rank, size):
    case = cases.make()
    outputs = supervised_forward, cross_entropy_loss_of_output()
    one = GGNOperator(case.model, case.batches, *outputs)
    G, pairs = matrix(one), lanczos(one, k=3, seed=0)
    per_sample = supervised_per_sample_loss(nn.functional.cross_entropy)
    F = matrix(EmpiricalFisherOperator(case.model, case.batches, per_sample))
    op = FSDPGGNOperator(sharded(case.model, size), case.batches[rank::size], *outputs)
    assert_rows_of(G, op)
    assert_rows_of(G, FSDPFisherOperator(case.model, case.batches, *outputs))
    assert_rows_of(F, FSDPEmpiricalFisherOperator(case.model, case.batches[rank::size], per_sample))
    ours = lanczos(op, k=3, seed=0)
    assert_close(ours.eigenvalues, pairs.eigenvalues)
    assert_close(ours.eigenvectors.abs(), pairs.eigenvectors[:, op.rows()].abs(), 1e-6)


@claim
def replicas_of_shards_have_the_same_products(rank, size):
    case = cases.make()
    H = case.hessian()
    mesh = init_device_mesh("cpu", (size, 1), mesh_dim_names=("replicas", "shards"))
    op = FSDPHessianOperator(
        sharded(case.model, size, mesh=mesh), case.batches[rank::size], case.loss_fn
    )
    assert op.shape == H.shape
    assert_rows_of(H, op)


@claim
def mixed_precision_takes_nothing_from_products(rank, size):
    case = cases.make()
    H = case.hessian()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    model = sharded(case.model, size, mp_policy=policy)
    assert_rows_of(H, FSDPHessianOperator(model, case.batches[rank::size], case.loss_fn))


@claim
def training_goes_on_as_if_there_were_no_products(rank, size):
    case = cases.make()
    case.loss().backward()
    gradient = torch.cat([p.grad.flatten() for p in case.model.parameters()])
    case.model.zero_grad()
    model = sharded(case.model, size)
    with torch.no_grad():
        model(case.x)  # leaves the outermost parameters whole
    op = FSDPHessianOperator(model, case.batches, case.loss_fn)
    for _ in range(2):
        assert all(p is model.get_parameter(name) for name, p in op.params.items())
        op @ op.vector()
        with pytest.raises(ZeroDivisionError):
            _broken(op)
        assert all(isinstance(p, DTensor) for p in model.parameters())
        case.mean(model(case.x), case.y).backward()
        grads = [p.grad.to_local().flatten() for p in model.parameters()]
        assert_close(torch.cat(grads), gradient[op.rows()])
        model.zero_grad()


def _broken(op):
    with op.frozen():
        raise ZeroDivisionError


@claim
def frozen_products_share_the_graph(rank, size):
    case = cases.make()
    H = case.hessian()
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        return case.loss_fn(model, batch)

    op = FSDPHessianOperator(
        sharded(case.model, size), [(case.x, case.y)], loss_fn, strategy="loop"
    )
    with op.frozen():
        assert_rows_of(H, op)
        before = len(calls)
        assert_rows_of(H, op)
        assert len(calls) == before
    assert all(isinstance(p, DTensor) for p in case.model.parameters())


@claim
def an_error_on_one_rank_ends_all(rank, size):
    case = cases.make()

    def loss_fn(model, batch):
        if rank == 1:
            raise ValueError("the fourth image is broken")
        return case.loss_fn(model, batch)

    op = FSDPHessianOperator(sharded(case.model, size), case.batches, loss_fn)
    assert "the fourth image is broken" in raised(ValueError, lambda: op @ op.vector())
    X = torch.zeros(op.shape_here[0], 1 + rank, dtype=op.dtype)
    assert "columns" in raised(SkerchError, lambda: op @ X)


@claim
def a_model_that_is_not_sharded_as_a_whole_is_refused(rank, size):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    make = lambda: FSDPHessianOperator(model, [], lambda f, x: f(x).mean())  # noqa: E731
    assert "not sharded" in raised(SkerchError, make)
    fully_shard(model[0], mesh=init_device_mesh("cpu", (size,)))
    assert "1.weight, 1.bias are not sharded" in raised(SkerchError, make)
    replicas = lambda: DDPHessianOperator(model, [], lambda f, x: f(x).mean())  # noqa: E731
    assert "0.weight is sharded over ranks; FSDPHessianOperator" in raised(SkerchError, replicas)


@pytest.fixture(scope="module", params=[2, 3])
def failed(request, tmp_path_factory):
    return failures(CLAIMS, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [claim.__name__ for claim in CLAIMS])
def test_ranks_see_that(name, failed):
    assert not failed[name], failed[name]
