"""Blocks of Hessian-vector products beside curvlinops' and the loops that anybody would write.

All candidates of a network take turns; the least time of each is shown. Figures are medians over
pairs in turns. --quick: fewer networks and turns, smaller batches, no peak memory.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Benchmark, Figure, Options, in_turns, over, say, table
from benchmarks.peers import Peer
from benchmarks.peers.products import Gradient, seconds, vectors
from benchmarks.rates import Work, gemm_operation, machine, peak_bytes
from skerch import HessianOperator
from skerch.curvature import supervised_loss
from skerch.curvature.memory import keep_freed_memory
from skerch.curvature.operator import MEMORY_FORMATS
from skerch.curvature.strategies import STRATEGIES, Choice
from skerch.errors import SkerchError
from skerch.jobs.problems import build_model, load_problem

BENCHMARK = Benchmark("docs/performance.md", make="bench", quick=True)
VECTORS, MATRIX = "curvlinops, one vector at a time", "curvlinops, matrix"
FRESH = "fresh double backward per vector"
GEMM = "a floating-point operation of a matrix product"
FORWARD, AUTO = "forward", "ours, auto"
CHUNKS = (8, 32, 64)
QUICK = slice(1, 3)  # of the networks
PAIRS = 5
LOSS = supervised_loss(cross_entropy)
FASTER = {"mnist_mini, 100": (20, 1), "mnist_mini, 500": (10, 1), "cifar10_3c3d, 100": (1.4, 1.4)}
FORWARDS = {"cifar10_3c3d, 100": 9}  # that a product may take
CHOSEN = 1.05  # times the fastest
NORMED, GROWTH = "batch norm, 100", 1.5  # whose peak memory grows by less with a block


@dataclass(frozen=True)
class Case:
    """A network and its batch, and how many vectors make a block."""

    name: str
    network: nn.Module
    batch: tuple[Tensor, Tensor]
    block: int

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def formats(self) -> tuple[str, ...]:
        """The memory formats of images, where one may matter."""
        convolves = any(isinstance(layer, nn.Conv2d) for layer in self.network.modules())
        return tuple(MEMORY_FORMATS) if convolves else ("preserve",)

    def operator(
        self, strategy: str = "auto", chunk_size: int | None = None, memory_format: str = "auto"
    ) -> HessianOperator:
        """Our operator, without its checks."""
        how = {"strategy": strategy, "chunk_size": chunk_size, "memory_format": memory_format}
        return HessianOperator(self.network, [self.batch], LOSS, check=False, **how)

    def operations(self) -> tuple[int, int]:
        """Floating-point operations of a forward pass and of one product with a retained graph."""
        gradient = Gradient(self.network, self.batch)
        V = vectors(1, self.size)
        with FlopCounterMode(display=False) as forward:
            self.network(self.batch[0])
        with FlopCounterMode(display=False) as product:
            gradient.loop(V)
        return forward.get_total_flops(), product.get_total_flops()


def cases(quick: bool = False) -> list[Case]:
    """The networks, in eval mode, with random data: it does not change what a product costs."""
    torch.manual_seed(0)
    convolutions: list[nn.Module] = []
    for channels, filters, stride in ((3, 16, 1), (16, 32, 2), (32, 64, 2)):
        convolution = nn.Conv2d(channels, filters, 3, stride, padding=1)
        convolutions += [convolution, nn.BatchNorm2d(filters), nn.ReLU()]
    convolutions += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    layers = [nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True) for _ in range(2)]
    attention = nn.Sequential(nn.Linear(16, 64), *layers, nn.Flatten(), nn.Linear(1024, 10))
    mini = build_model(load_problem({"name": "mnist_mini"}))
    deep = build_model(load_problem({"name": "cifar10_3c3d", "synthetic": True}))

    def case(name: str, network: nn.Module, count: int, shape: tuple[int, ...], block: int) -> Case:
        batch = torch.rand(count, *shape), torch.arange(count) % 10
        return Case(f"{name}, {count}", network.eval(), batch, block)

    return [
        case("mnist_mini", mini, 100, (1, 16, 16), 64),
        case("mnist_mini", mini, 500, (1, 16, 16), 64),
        case("cifar10_3c3d", deep, 100, (3, 32, 32), 2 if quick else 8),
        case("batch norm", nn.Sequential(*convolutions), 100, (3, 32, 32), 16),
        case("attention", attention, 100, (16, 16), 16),
    ]


def measure(options: Options) -> Iterator[str | Figure]:
    """A table a network, floor first."""
    keep_freed_memory()
    quick = options.quick
    yield machine()
    with Peer("curvlinops_products") as peer:
        for case in cases(quick)[QUICK if quick else slice(None)]:
            say(case.name)
            peer.load(case.network, case.batch)
            check(case, peer)
            with ExitStack() as frozen:  # as in a worker: the graph is built once for all blocks
                yield from compare(case, *candidates(case, peer, frozen, quick), 1 if quick else 20)
    if not quick:
        yield from memory()


def check(case: Case, peer: Peer) -> None:
    """Refuse to compare with a peer that computes something else."""
    V = vectors(2, case.size)
    norm = float((case.operator("loop", 1, "preserve") @ V.T).norm())
    theirs = peer.ask("products", count=2, matrix=False)["norm"]
    if abs(theirs / norm - 1) > 1e-3:
        raise RuntimeError(f"{case.name}: norm {norm:.6g} of products, curvlinops' {theirs:.6g}.")


def candidates(
    case: Case, peer: Peer, frozen: ExitStack, quick: bool
) -> tuple[dict[str, Work], str]:
    """What measures a product of each, and a forward pass; what `auto` has chosen."""
    few, V = min(8, case.block // 2), vectors(case.block, case.size)

    def theirs(count: int, matrix: bool) -> Work:
        return lambda: peer.ask("products", count=count, matrix=matrix)["seconds"] / count

    def timed(product: Callable[[Tensor], object], rows: Tensor = V) -> Work:
        return lambda: seconds(lambda: product(rows)) / len(rows)

    def ours(*choice: str | int) -> tuple[HessianOperator, Work]:
        op = case.operator(*choice)
        frozen.enter_context(op.frozen())
        return op, timed(lambda rows: op @ rows.T)

    gradient = partial(Gradient, case.network, case.batch)
    works = {
        GEMM: gemm_operation(torch.float32, 1024),
        VECTORS: theirs(few, False),
        MATRIX: theirs(case.block, True),
        FRESH: timed(lambda rows: [gradient().loop(v[None]) for v in rows], V[:few]),
        "one retained graph, loop": timed(gradient().loop),
        "one retained graph, is_grads_batched": timed(gradient().batched),
    }
    for name, strategy in STRATEGIES.items():
        chunks = CHUNKS[-1 if quick else 0 :] if strategy.chunk_size > 1 else (1,)
        for size in sorted({min(size, case.block) for size in chunks}):
            for memory_format in case.formats[: 1 if quick else None]:
                label = f"ours: {describe(Choice(name, size, memory_format))}"
                _, work = ours(name, size, memory_format)
                try:
                    work()
                except (RuntimeError, SkerchError) as refusal:
                    say(f"{case.name}: {label}: {refusal}")
                else:
                    works[label] = work
    auto, works[AUTO] = ours()
    if len(case.formats) > 1:
        for memory_format in case.formats:
            layout = getattr(torch, f"{memory_format}_format", torch.channels_last)
            network = deepcopy(case.network).to(memory_format=layout).requires_grad_(False)
            images = case.batch[0].to(memory_format=layout)
            forward = partial(network, images)
            works[f"{FORWARD}, {memory_format}"] = partial(seconds, forward)
    return works, describe(auto.resolve(case.block))


def compare(
    case: Case, works: dict[str, Work], chosen: str, budget: float
) -> Iterator[str | Figure]:
    """The table of a network, and `auto` against curvlinops, a forward pass, and the fastest."""
    found = in_turns(works, 10**6, budget)
    least = {name: min(values) for name, values in found.items()}
    forward, product = case.operations()
    gemm = least.pop(GEMM)
    floor = product * gemm
    text = f"floor: {product / 1e6:.1f} MFLOP, {product / forward:.1f} forwards"
    rows = [(f"{text}, at {1e-9 / gemm:.0f} GFLOP/s", floor * 1e3, 1.0)]
    for name, value in least.items():
        label = f"{name}: {chosen}" if name == AUTO else name
        rows.append((label, value * 1e3, value / floor))
    yield f"**{case.name} datapoints, N = {case.size:,}, blocks of {case.block}**"
    yield table(("", "ms a product", "over floor"), rows)

    def figure(what: str, one: str, other: str, bound: str, target: float) -> Figure:
        turns = in_turns({one: works[one], other: works[other]}, PAIRS)
        return Figure(f"{case.name}: {what}", over(turns[one], turns[other]), bound, target, "x")

    for name, target in zip((VECTORS, MATRIX), FASTER.get(case.name, ()), strict=False):
        yield figure(f"{name} over auto", name, AUTO, "≥", target)
    forwards = [name for name in least if name.startswith(FORWARD)]
    if case.name in FORWARDS:
        fastest = min(forwards, key=least.__getitem__)
        what = "a product over the fastest forward"
        yield figure(what, AUTO, fastest, "≤", FORWARDS[case.name])
    best = min(least.keys() - {*forwards, AUTO}, key=least.__getitem__)
    yield figure(f"auto over {best}", AUTO, best, "≤", CHOSEN)


def describe(choice: Choice) -> str:
    """A choice in words."""
    size = f" of {choice.chunk_size}" if choice.chunk_size > 1 else ""
    channels_last = ", channels_last" if choice.memory_format == "channels_last" else ""
    return f"{choice.strategy}{size}{channels_last}"


def memory(chunk_size: int = 4) -> Iterator[str | Figure]:
    """The growth of the batched strategy's peak memory when a block grows eightfold."""
    blocks = (chunk_size, 8 * chunk_size)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        idle, *found = pool.apply(peaks, (chunk_size, blocks))
    rows = [(f"{width} columns", peak - idle) for width, peak in zip(blocks, found, strict=True)]
    yield table((f"{NORMED}, batched in chunks of {chunk_size}", "MiB"), rows)
    name = "peak memory of a block eight times a chunk, over a chunk's"
    yield Figure(name, (found[1] - idle) / (found[0] - idle), "≤", GROWTH, "x")


def peaks(chunk_size: int, blocks: Sequence[int]) -> list[float]:
    """The most MiB in use so far, before and after each block of so many columns.

    To be called in a process of its own.
    """
    keep_freed_memory()
    (case,) = (case for case in cases() if case.name == NORMED)
    op = case.operator("batched", chunk_size, "preserve")
    op.check = True  # as a worker's
    found = [peak_bytes() / 2**20]
    for columns in blocks:
        op @ vectors(columns, case.size).T
        found.append(peak_bytes() / 2**20)
    return found
