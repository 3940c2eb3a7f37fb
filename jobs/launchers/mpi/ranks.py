"""MPI ranks as the team that shares the measurement blocks and the slabs of streaming passes."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from skerch.errors import SkerchError
from skerch.files import refusals_named
from skerch.jobs.launchers.local import sentence
from skerch.measurements.team import Range, Rows, Use, Work, products

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm
    from torch import Tensor

T = TypeVar("T")

LONGEST_NAP = 0.01  # seconds between two looks of a rank that waits


class RankError(SkerchError):
    """What failed on some rank, raised on all of them."""


class Ranks:
    """The team of all ranks.

    Before they exchange anything they agree that none has failed, so that none waits for one that
    does not come. A rank that fails elsewhere joins the agreement that the others come to next.
    """

    def __init__(self, comm: Intracomm):
        self._comm = comm
        self.writes = comm.rank == 0
        self.sharing = _sharing(comm)
        self.log = Path()  # of the task at hand

    def one(self, compute: Callable[[], T]) -> T:
        """As of `Team`."""
        value = compute() if self.writes else None
        self._agree(None)
        found: T = self._comm.bcast(value)
        return found

    def share(self, items: Callable[[], list[T]]) -> list[T]:
        """Every n-th."""
        return self.one(items)[self._comm.rank :: self._comm.size]

    def each(
        self, ranges: Sequence[Range], rows: Rows, worker: Callable[[], Work], use: Use
    ) -> None:
        """Every rank works on one range, then the first one receives and uses them in order."""
        rank, size = self._comm.rank, self._comm.size
        error: BaseException | None = None
        with closing(products(ranges[rank::size], rows, worker, ranges)) as results:
            for first in range(0, len(ranges), size):
                batch = ranges[first : first + size]
                mine: list[Tensor] = []
                if rank < len(batch) and error is None:
                    found, error = _attempt(next, results)
                    mine = [tensor.cpu().contiguous() for tensor in found or ()]
                shapes = self._agree(error, [(tensor.shape, tensor.dtype) for tensor in mine])
                if not self.writes:
                    for tensor in mine:
                        self._comm.Send(tensor.numpy(), 0)
                    continue
                for source, part in enumerate(batch):  # each is received, whatever `use` does
                    tensors = self._receive(source, shapes[source]) if source else mine
                    if error is None:
                        _, error = _attempt(use, *part, *tensors)
        if error is not None:
            raise error

    def together(self, work: Callable[[], None]) -> None:
        """Work on a task; what fails on one rank fails on all."""
        _, error = _attempt(work)
        if isinstance(error, RankError):
            raise error  # they know of it
        self._agree(error)

    def abort(self) -> None:
        """End all ranks."""
        self._comm.Abort(1)

    def _receive(self, source: int, shapes: list[Any]) -> list[Tensor]:
        import torch

        try:
            tensors = [torch.empty(shape, dtype=dtype, device="cpu") for shape, dtype in shapes]
            for tensor in tensors:
                self._comm.Recv(tensor.numpy(), source)
        except Exception:  # no memory; the sender would wait for ever
            traceback.print_exc()
            self.abort()
        return tensors

    def _agree(self, error: BaseException | None, word: object = None) -> list[Any]:
        """Every rank's word, once all are here; raises RankError if one has failed.

        Until then they nap, and leave the cores to the first one.
        """
        begin = time.monotonic()
        barrier = self._comm.Ibarrier()
        while not barrier.Test():
            time.sleep(min(1e-4 + 0.1 * (time.monotonic() - begin), LONGEST_NAP))
        failure = None
        if error is not None:
            trace = "".join(traceback.format_exception(error))
            where = f"rank {self._comm.rank} on {socket.gethostname()}"
            failure = sentence(error, self.log), f"{where}\n{trace}"
        said = self._comm.allgather((failure, word))
        for failed, _ in said:
            if failed is not None:
                raise RankError(failed[0]) from RuntimeError(failed[1])
        return [word for _, word in said]


def _sharing(comm: Intracomm) -> int:
    """How many ranks share the cores of this one: all of its node, unless each has its own."""
    from mpi4py import MPI

    cores = set(range(os.cpu_count() or 1))
    if hasattr(os, "sched_getaffinity"):
        cores = os.sched_getaffinity(0)
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    together = set().union(*node.allgather(cores))
    return max(1, round(len(cores) * node.size / len(together)))


def _attempt(function: Callable[..., T], *arguments: Any) -> tuple[T | None, BaseException | None]:
    """What comes of it: a result, or an error."""
    try:
        with refusals_named():
            return function(*arguments), None
    except (Exception, SystemExit) as error:
        return None, error
