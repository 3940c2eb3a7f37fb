"""What the processes of torch.distributed, the ranks, tell each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from skerch.errors import SkerchError

Result = TypeVar("Result")
WORDS = 2048  # bytes of an error's message that the other ranks are told


@dataclass(frozen=True)
class Ranks:
    """The ranks of a group, or of a mesh, which do the same work on different data.

    Each method is called by all of them, in the same order. A process without torch.distributed is
    the only rank.
    """

    groups: Sequence[Any]  # a sum over one after the other is over all ranks
    rank: int
    size: int
    device: torch.device | str  # where tensors are that the groups can send

    @classmethod
    def of_group(cls, group: Any = None, device: torch.device | str = "cpu") -> Ranks:
        """Those of a process group, of the default one for None; raises SkerchError outside it."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls([], 0, 1, device)
        rank = dist.get_rank(group)
        if rank < 0:
            raise SkerchError(
                "This process is no rank of the process_group; give one that it is in."
            )
        return cls([group], rank, dist.get_world_size(group), device)

    @classmethod
    def of_mesh(cls, mesh: DeviceMesh) -> Ranks:
        """Those of a device mesh of any number of dimensions, in row-major order."""
        rank = int((mesh.mesh == dist.get_rank()).flatten().nonzero())
        groups = [mesh.get_group(dim) for dim in range(mesh.ndim)]
        return cls(groups, rank, mesh.size(), mesh.device_type)

    def sum(self, tensor: Tensor) -> Tensor:
        """Σ over ranks, in the tensor's own memory; on all ranks to the same bits."""
        for group in self.groups:
            dist.all_reduce(tensor, group=group)
        return tensor

    def table(self, row: Sequence[float]) -> Tensor:
        """The rows of all ranks, (size, len(row)) in float64."""
        table = torch.zeros(self.size, len(row), dtype=torch.float64, device=self.device)
        table[self.rank] = torch.tensor(row, dtype=torch.float64, device=self.device)
        return self.sum(table).cpu()

    def each(
        self, work: Callable[[], tuple[Result, Sequence[float]]], numbers: int
    ) -> tuple[Result, Tensor]:
        """What work() makes here, and the table (size, numbers) of what it tells on each rank.

        If it raises on one rank, none goes on: that one raises its error, the others a SkerchError
        with its message.
        """
        failure: Exception | None = None
        try:
            result, told = work()
        except Exception as error:
            failure, told = error, [0.0] * numbers
        table = self.table([failure is not None, *told])
        failed = [rank for rank, fails in enumerate(table[:, 0]) if fails]
        if not failed:
            return result, table[:, 1:]
        message = f"{failure}".encode()[:WORDS]
        words = self.table([*message, *[0] * (WORDS - len(message))])[failed[0]]
        if failure is not None:
            raise failure
        text = bytes(words.to(torch.uint8).tolist()).rstrip(b"\0").decode(errors="replace")
        raise SkerchError(f"Rank {failed[0]} of {self.size} failed: {text}")
