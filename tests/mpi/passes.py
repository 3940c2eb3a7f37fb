"""The program of each rank in `test_passes.py`: streaming passes of two and of three."""

from __future__ import annotations

import traceback

import pytest
import torch
from mpi4py import MPI

from skerch.errors import SkerchError
from skerch.jobs.launchers.mpi.ranks import RankError, Ranks
from skerch.measurements import gram as grams
from skerch.measurements.gram import gram, orthonormalise, slabs
from skerch.measurements.range_finder import range_map
from skerch.measurements.team import ALONE

grams.SLAB_ROWS = 64
grams.PIECE_ROWS = 24
N, M = 15 * 64 + 7, 20  # 16 slabs, the last one short: no multiple of 3

generator = torch.Generator().manual_seed(0)
A, B = (torch.randn(n, M, generator=generator, dtype=torch.float64) for n in (N, M))
decay = torch.logspace(0, -12, M, dtype=torch.float64)
ill = torch.linalg.qr(A).Q * decay @ torch.linalg.qr(B).Q  # so that a second pass is needed
computed: set[int] = set()


def rows(start: int, stop: int) -> torch.Tensor:
    computed.add(start)
    return ill[start:stop]


def same(comm: MPI.Intracomm, ranks: Ranks) -> None:
    """All passes give the bits of one rank; each rank computes its slabs, one gets them all."""
    computed.clear()
    copied: list[tuple[int, int, torch.Tensor]] = []
    G = gram(rows, N, team=ranks, copy=lambda *slab: copied.append(slab))
    assert computed == {start for start, _ in list(slabs(N))[comm.rank :: comm.size]}
    if ranks.writes:
        assert [(start, stop) for start, stop, _ in copied] == list(slabs(N))
        assert torch.equal(torch.cat([slab for *_, slab in copied]), ill)
    else:
        assert not copied
    assert torch.equal(G, gram(rows, N))
    ours, alone = (orthonormalise(G, rows, N, torch.float64, team=team) for team in (ranks, ALONE))
    assert torch.equal(ours.P, alone.P)
    assert torch.equal(ours.R, alone.R)

    def first(start: int, stop: int) -> torch.Tensor:
        return A[start:stop, :10]

    def both(start: int, stop: int) -> torch.Tensor:
        return A[start:stop]

    def maps(team: grams.Team) -> torch.Tensor:
        G = gram(first, N, team=team)
        before = range_map(G, first, N, 5, torch.float64, team=team)
        G = gram(both, N, known=G, team=team)
        return range_map(G, both, N, 5, torch.float64, before, team=team)

    assert torch.equal(maps(ranks), maps(ALONE))


def failures(comm: MPI.Intracomm, ranks: Ranks) -> None:
    """What one rank raises, at whatever point, all raise; and then they can go on."""
    last = comm.size - 1

    def broken(start: int, stop: int) -> torch.Tensor:
        if start == 64 * (comm.size + last):  # in the last rank's second slab
            raise SkerchError("a broken slab")
        return rows(start, stop)

    def full(start: int, stop: int, slab: torch.Tensor) -> None:
        if start:
            raise OSError(28, "No space left on device", "merged.h5")

    def early() -> None:
        if comm.rank == last:
            raise ValueError("before the pass")
        gram(rows, N, team=ranks)

    def late() -> None:
        gram(rows, N, team=ranks)
        if comm.rank == last:
            raise SkerchError("after the pass")

    for work, words in (
        (lambda: gram(broken, N, team=ranks), "a broken slab"),
        (lambda: gram(rows, N, team=ranks, copy=full), r"merged\.h5 cannot be used: No space"),
        (lambda: ranks.one(lambda: 1 / 0), "ZeroDivisionError: division by zero"),
        (early, "ValueError: before the pass"),
        (late, "after the pass"),
    ):
        with pytest.raises(RankError, match=words) as caught:
            ranks.together(work)
        assert "Traceback" in str(caught.value.__cause__)
        assert ranks.share(lambda: list(range(5))) == list(range(5))[comm.rank :: comm.size]


try:
    for size in (2, 3):
        of_size = MPI.COMM_WORLD.Split(0 if MPI.COMM_WORLD.rank < size else MPI.UNDEFINED)
        if of_size != MPI.COMM_NULL:
            same(of_size, Ranks(of_size))
            failures(of_size, Ranks(of_size))
            print(f"rank {of_size.rank} of {size} is done", flush=True)
except BaseException:  # the others would wait for ever
    traceback.print_exc()
    MPI.COMM_WORLD.Abort(1)
