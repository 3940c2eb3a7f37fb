"""Products of the GGN over a gradient, beside curvlinops'; those of a softmax, compiled and not.

Blocks of vectors, with the forward pass that they need, in turns. One thread, and what its
processor has done: that does not depend on what else the machine does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import process_time

import torch
from torch import nn

from benchmarks.harness import Benchmark, Figure, Options, clock, in_turns, over, say, table
from benchmarks.rates import machine
from skerch.curvature import GGNOperator, supervised_loss
from skerch.curvature.losses.softmax_product import softmax_product
from skerch.curvature.memory import keep_freed_memory
from skerch.jobs.problems import build_model, load_problem

BENCHMARK = Benchmark("docs/performance.md", make="bench")
GRADIENT, OURS, THEIRS = "gradient", "ours, auto", "curvlinops"
POSITIONS, TOKENS = 256, 50257  # of GPT-2
TURNS = 8
TARGET, COMPILED = 0.9, 2  # curvlinops' time over ours; eager's over compiled


def measure(options: Options) -> Iterator[str | Figure]:
    """A row a network and size of a block, then the softmax's."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield machine()
    rows, figures = [], []
    mini = build_model(load_problem({"name": "mnist_mini"}))
    deep = build_model(load_problem({"name": "cifar10_3c3d", "synthetic": True}))
    for name, network, x, blocks in (
        ("mnist_mini, 500", mini, torch.randn(500, 1, 16, 16), (1, 8, 64)),
        ("cifar10_3c3d, 50", deep, torch.randn(50, 3, 32, 32), (1, 8)),
    ):
        for block in blocks:
            say(f"{name}, {block}")
            works = candidates(network, (x, torch.arange(len(x)) % 10), block)
            turns = in_turns(works, 2 if options.quick else TURNS)
            gradient = turns[GRADIENT]
            ratios = [over(turns[who], gradient) / block for who in (OURS, THEIRS)]
            rows.append((name, block, 1e3 * min(gradient), *ratios))
        figure = f"curvlinops' time over ours, {name}, blocks of {blocks[-1]}"
        figures.append(Figure(figure, over(turns[THEIRS], turns[OURS]), "≥", TARGET))
    header = ("network", "vectors", "gradient, ms", f"{OURS}, gradients", f"{THEIRS}, gradients")
    yield table(header, rows)
    yield from figures
    yield from softmax(2 if options.quick else TURNS)


def candidates(
    network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], block: int
) -> dict[str, Callable[[], float]]:
    """What times a gradient and a block of products of each."""
    from curvlinops import GGNLinearOperator  # which not everybody has who wants another table

    network.eval()
    criterion, params = nn.CrossEntropyLoss(), list(network.parameters())
    loss_fn = supervised_loss(criterion)
    ours = GGNOperator.of_loss(network, [batch], loss_fn, check=False)
    theirs = GGNLinearOperator(network, criterion, params, [batch], check_deterministic=False)
    X = torch.randn(block, ours.size).T
    works = {
        GRADIENT: lambda: torch.autograd.grad(loss_fn(network, batch), params),
        OURS: lambda: ours @ X,
        THEIRS: lambda: theirs @ X,
    }
    apart = float((works[OURS]() - works[THEIRS]()).norm() / works[OURS]().norm())
    if apart > 1e-4:
        raise RuntimeError(f"The products are {apart:.1g} of their norm apart from curvlinops'.")
    return {name: lambda work=work: clock(work, process_time) for name, work in works.items()}


def softmax(turns: int) -> Iterator[str | Figure]:
    """A row a back end."""
    z, u = torch.randn(2, POSITIONS, TOKENS)
    m = torch.full((POSITIONS, 1), 1 / POSITIONS)
    works = {
        name: lambda name=name: clock(lambda: softmax_product(z, u, m, -1, name), process_time)
        for name in ("eager", "compile")
    }
    found = in_turns(works, turns)
    header = (f"{POSITIONS} positions of {TOKENS:,} tokens", "ms")
    yield table(header, [(name, 1e3 * min(seconds)) for name, seconds in found.items()])
    ratio = over(found["eager"], found["compile"])
    yield Figure("an eager product's time over a compiled one's", ratio, "≥", COMPILED)
