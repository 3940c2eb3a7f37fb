"""Blocks of products of data that ranks share, at one rank and at two, one thread each.

mnist_mini's network and 2,000 images of noise, halved between two ranks. Both operators take turns
in the same processes: the one of one rank is a group of its own, while the other rank waits. A
product's time is by the clock, and by what the busier rank's processor has done, which does not
depend on what else the machine does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, thread_time

import torch
import torch.distributed as dist
from torch.multiprocessing import spawn
from torch.nn.functional import cross_entropy

from benchmarks.harness import Benchmark, Figure, Options, in_turns, over, table
from benchmarks.rates import machine
from skerch.curvature import DDPHessianOperator, supervised_loss
from skerch.jobs.problems import build_model, load_problem

BENCHMARK = Benchmark("docs/performance.md", make="bench")
EXAMPLES, BLOCK, TURNS = 2000, 64, 12
ONE, TWO = "one rank", "two ranks"
FASTER = 1.7  # of 2


def measure(options: Options) -> Iterator[str | Figure]:
    """A row a number of ranks."""
    yield machine()
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (folder, options.quick), nprocs=2)
        turns = torch.load(Path(folder) / "seconds.pt")
    rows = [
        (name, *(1e3 * min(seconds) / BLOCK for seconds in zip(*pairs, strict=True)))
        for name, pairs in turns.items()
    ]
    yield table(("ranks", "ms per product", "of the busier processor"), rows)
    busy = {name: [processor for _, processor in pairs] for name, pairs in turns.items()}
    yield Figure("one rank's processor time over two's", over(busy[ONE], busy[TWO]), "≥", FASTER)


def _rank(rank: int, folder: str, quick: bool) -> None:
    """Time the products of one rank and of both in turns; the first rank keeps the seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    alone = dist.new_group([0])
    network = build_model(load_problem({"name": "mnist_mini"}))
    x = torch.randn(EXAMPLES, 1, 16, 16)
    data = [(x, torch.arange(EXAMPLES) % 10)]
    loss_fn = supervised_loss(cross_entropy)
    how = {"strategy": "batched", "check": False}
    halves = [tuple(tensor[rank::2] for tensor in data[0])]
    two = DDPHessianOperator(network, halves, loss_fn, **how)
    X = torch.randn(two.size, BLOCK)
    one = None
    if not rank:
        one = DDPHessianOperator(network, data, loss_fn, process_group=alone, **how)

    def timed(op: DDPHessianOperator | None) -> tuple[float, float]:
        busy, wall = thread_time(), perf_counter()
        if op:
            op @ X
        told = torch.tensor([perf_counter() - wall, thread_time() - busy])
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return tuple(told.tolist())

    works = {ONE: lambda: timed(one), TWO: lambda: timed(two)}
    turns = in_turns(works, 3 if quick else TURNS)
    if not rank:
        torch.save(turns, f"{folder}/seconds.pt")
    dist.destroy_process_group()
