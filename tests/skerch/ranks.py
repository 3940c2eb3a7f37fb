"""Claims that real ranks of torch.distributed check, those of a module in one start of them."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

Claim = Callable[[int, int], None]  # of the rank and the number of ranks; raises where it fails


def failures(claims: Sequence[Claim], size: int, folder: Path) -> dict[str, str]:
    """What each claim, by its name, raised on the ranks; "" where it holds."""
    multiprocessing.set_forkserver_preload(
        ["pytest", "torch.distributed.fsdp", "skerch.curvature", "skerch.krylov"]
    )
    arguments = (list(claims), size, folder)
    start_processes(_rank, arguments, nprocs=size, start_method="forkserver")
    told = [torch.load(folder / f"{rank}.pt") for rank in range(size)]
    return {claim.__name__: "".join(of[claim.__name__] for of in told) for claim in claims}


def _rank(rank: int, claims: list[Claim], size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    wait = timedelta(seconds=20)  # for a rank that does not come
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)
    told = {}
    for claim in claims:
        try:
            claim(rank, size)
            told[claim.__name__] = ""
        except Exception:
            told[claim.__name__] = f"\nrank {rank}:\n{traceback.format_exc()}"
    torch.save(told, folder / f"{rank}.pt")
    dist.destroy_process_group()


def raised(kind: type[Exception], work: Callable[[], object]) -> str:
    """The message of the error of a kind that work() raises."""
    with pytest.raises(kind) as error:
        work()
    return str(error.value)
