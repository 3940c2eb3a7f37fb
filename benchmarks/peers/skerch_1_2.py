"""skerch 1.2.0's sketched eigendecomposition in core."""

from __future__ import annotations

import torch
from products import Gradient, seconds, serve
from torch import Tensor, nn

from skerch.algorithms import seigh
from skerch.linops import BaseLinOp

problem: list[tuple[nn.Module, tuple[Tensor, Tensor]]] = []


class Hessian(BaseLinOp):
    """Its operator: products of one retained graph, a block at once, the fastest it can have."""

    def __init__(self) -> None:
        self.gradient = Gradient(*problem[0])
        N = sum(self.gradient.sizes)
        super().__init__((N, N))

    def matmul(self, x: Tensor) -> Tensor:
        """H x for x of shape (N,) or (N, b)."""
        return self.gradient.batched(x.T).T if x.ndim == 2 else self.gradient.batched(x[None])[0]


def load(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Take the network whose Hessian is decomposed from now on."""
    problem[:] = [(network, batch)]


def decompose(recovery: str, outer: int, block: int, path: str) -> float:
    """The seconds from the network to eigenpairs, which go to a file."""
    found: list[Tensor] = []
    how = {"noise_type": "rademacher", "recovery_type": recovery, "meas_blocksize": block}

    def work() -> None:
        found[:] = seigh(Hessian(), torch.device("cpu"), torch.float32, outer, seed=0, **how)

    taken = seconds(work)
    torch.save(found, path)
    return taken


if __name__ == "__main__":
    serve(load, decompose=decompose)
