"""Curvatures of networks that FSDP2 shards over ranks, with vectors sharded like the parameters.

FSDP2 frees a layer's whole parameters after it has been used, which cuts the graph that a second
derivative needs. Here the network has its whole parameters, without FSDP's hooks, for as long as a
block of products takes; what lasts, parameters and vectors, is sharded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.nn import Module, Parameter

from skerch.curvature.distributed import DistributedOperator
from skerch.curvature.empirical_fisher import EmpiricalFisherOperator
from skerch.curvature.fisher import FisherOperator
from skerch.curvature.ggn import GGNOperator
from skerch.curvature.hessian import HessianOperator
from skerch.errors import SkerchError
from skerch.krylov.distributed import DistributedBackend
from skerch.ranks import Ranks


class FSDPOperator(DistributedOperator):
    """A curvature of a network under `fully_shard`, on vectors of which each rank has its rows.

    Rank r multiplies X of shape (n_r, b) and has n_r rows of A X: those of its own shards of the
    selected parameters, one after the other in the order of `model.named_parameters()`, each in
    row-major order. They are the rows `A.rows()` of what one process multiplies. n_r may differ
    between ranks, and be 0; replicas, on a mesh that has them, have the same rows. Products are
    exact: those of one process, in the dtype of the sharded parameters, whatever FSDP's mixed
    precision.

    Memory on each rank while a block of b columns is multiplied: all parameters whole, the graph of
    their gradient, and two blocks (N, b) in float32 or float64. Give few columns at once where
    that is much. A `frozen` operator, which it is in the algorithms of `skerch.krylov`, holds the
    whole parameters throughout. Otherwise a rank has nothing but its shards between products.

    Args:
        model: of which every parameter belongs to a module under `fully_shard`, over one mesh.

    Other arguments are those of `kind`, with this rank's share of the data, or all the data on
    every rank. Raises SkerchError for a model that is sharded in another way.
    """

    def __init__(self, model: Module, *args: Any, **options: Any):
        self.model = getattr(model, "_orig_mod", model)  # of what torch.compile returns
        self._reshard()
        shards = dict(self.model.named_parameters())
        self._mesh = _mesh(shards)
        self._whole = False
        with self._gathered():
            super().__init__(
                Ranks.of_mesh(self._mesh), lambda: self.kind(self.model, *args, **options)
            )
        self.shards: dict[str, Any] = {name: shards[name] for name in self.local.params}
        self.local.params = dict(self.shards)  # and the whole ones go
        self._sizes = [p.numel() for p in self.shards.values()]
        self._sizes_here = [p.to_local().numel() for p in self.shards.values()]
        self.shape_here = sum(self._sizes_here), sum(self._sizes_here)

    @cached_property
    def backend(self) -> DistributedBackend:
        """For the algorithms of `skerch.krylov` on these vectors."""
        ways = next(iter(self.shards.values())).placements
        groups = [
            group
            for group, way in zip(self.ranks.groups, ways, strict=True)
            if isinstance(way, Shard)
        ]
        return DistributedBackend(replace(self.ranks, groups=groups), self.rows())

    def vector(self) -> Tensor:
        """The rows of θ, a copy of shape (n_r,)."""
        return torch.cat([p.to_local().detach().reshape(-1) for p in self.shards.values()])

    def rows(self) -> Tensor:
        """The places (n_r,) of this rank's rows among the N of one process, ascending."""
        found, start = [], 0
        for p in self.shards.values():
            places = torch.arange(start, start + p.numel(), device="cpu").view(p.shape)
            found.append(_part(places, p).reshape(-1))
            start += p.numel()
        return torch.cat(found)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """As of `LossCurvature`; the model is whole within."""
        with self._gathered(), self.local.frozen():
            yield

    def loss(self) -> float:
        with self._gathered():
            return super().loss()

    def verify(self) -> None:
        with self._gathered():
            super().verify()

    def _matmul(self, X: Tensor) -> Tensor:
        """A X for X of shape (n_r, b)."""
        if not X.shape[1]:
            return torch.zeros_like(X)
        with self._gathered():
            out, weight = self._products(self._gather(X.detach().T).T)
            return self._scatter(out).div_(weight).T

    def _gather(self, rows: Tensor) -> Tensor:
        """The vectors (b, N) of which this rank has (b, n_r), parameter by parameter."""
        whole = torch.empty(len(rows), self.size, dtype=rows.dtype, device=rows.device)
        places = torch.split(whole, self._sizes, dim=1)
        parts = torch.split(rows, self._sizes_here, dim=1)
        for p, part, place in zip(self.shards.values(), parts, places, strict=True):
            shape = torch.Size([len(rows), *p.shape])
            local = part.reshape(len(rows), *p.to_local().shape)
            stride = torch.empty(shape, device="meta").stride()
            sharded = DTensor.from_local(
                local, self._mesh, _after_first(p), run_check=False, shape=shape, stride=stride
            )
            place.view(shape).copy_(sharded.full_tensor())
        return whole

    def _scatter(self, whole: Tensor) -> Tensor:
        """This rank's (b, n_r) of the sum over ranks of blocks (b, N), parameter by parameter."""
        partial = [Partial()] * self._mesh.ndim
        summed = []
        parts = torch.split(whole, self._sizes, dim=1)
        for p, part in zip(self.shards.values(), parts, strict=True):
            block = part.reshape(len(whole), *p.shape)
            terms = DTensor.from_local(block, self._mesh, partial, run_check=False)
            summed.append(terms.redistribute(placements=_after_first(p)).to_local().flatten(1))
        return torch.cat(summed, dim=1)

    def _reshard(self) -> None:
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Within, the model has its whole parameters, and FSDP's hooks do nothing."""
        if self._whole:
            yield
            return
        self._reshard()  # as a forward pass leaves the outermost parameters whole
        whole: dict[Any, Parameter] = {}
        with ExitStack() as back:
            for module in self.model.modules():
                for hooks in (module._forward_pre_hooks, module._forward_hooks):
                    for key, hook in list(hooks.items()):
                        if "torch.distributed.fsdp" in (getattr(hook, "__module__", None) or ""):
                            hooks[key] = _nothing
                            back.callback(hooks.__setitem__, key, hook)
                for name, p in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                    if p not in whole:
                        whole[p] = Parameter(p.full_tensor().detach(), p.requires_grad)
                    setattr(module, name, whole[p])
                    back.callback(setattr, module, name, p)
            self._whole = True
            back.callback(setattr, self, "_whole", False)
            if hasattr(self, "local"):
                named = dict(self.model.named_parameters())
                self.local.params = {name: named[name] for name in self.local.params}
                back.callback(setattr, self.local, "params", dict(self.shards))
            yield


class FSDPHessianOperator(FSDPOperator):
    """The Hessian of a network under `fully_shard`; arguments as of `FSDPOperator`."""

    kind = HessianOperator


class FSDPGGNOperator(FSDPOperator):
    """The generalised Gauss-Newton matrix likewise."""

    kind = GGNOperator


class FSDPFisherOperator(FSDPOperator):
    """The Fisher information likewise; of draws, data come in batches `Numbered(batch, index)`."""

    kind = FisherOperator


class FSDPEmpiricalFisherOperator(FSDPOperator):
    """The empirical Fisher matrix likewise."""

    kind = EmpiricalFisherOperator


def _nothing(*_: Any) -> None:
    """What a hook of FSDP does meanwhile."""


def _mesh(params: dict[str, Any]) -> Any:
    """The one device mesh over which all the parameters are sharded."""
    others = [name for name, p in params.items() if not isinstance(p, DTensor)]
    if others or not params:
        raise SkerchError(
            f"The parameters {', '.join(others[:3])} are not sharded; call fully_shard on the "
            "whole model, without ignored_params, after its layers."
        )
    meshes = {p.device_mesh for p in params.values()}
    kinds = {type(way) for p in params.values() for way in p.placements}
    if len(meshes) > 1 or kinds - {Shard, Replicate}:
        raise SkerchError(
            "The parameters are sharded over several meshes, or in more ways than by fully_shard; "
            "use one mesh and no tensor parallelism."
        )
    return meshes.pop()


def _after_first(p: DTensor) -> list[Placement]:
    """How a block (b, *shape) of vectors is sharded like a parameter."""
    return [Shard(way.dim + 1) if isinstance(way, Shard) else way for way in p.placements]


def _part(whole: Tensor, p: DTensor) -> Tensor:
    """This rank's part of a tensor that is sharded like a parameter."""
    for dim, way in enumerate(p.placements):
        if isinstance(way, Shard):
            chunks = whole.chunk(p.device_mesh.size(dim), way.dim)
            rank = p.device_mesh.get_local_rank(dim)
            whole = chunks[rank] if rank < len(chunks) else whole.narrow(way.dim, 0, 0)
    return whole
