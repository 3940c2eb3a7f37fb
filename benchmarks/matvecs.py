"""Blocks of Hessian-vector products beside curvlinops' and the loops that anybody would write.

    python benchmarks/matvecs.py [--quick] [--device cuda]

All candidates of a network take turns; the least time of each is shown. Figures are medians over
pairs in turns. --quick: fewer networks and turns, smaller batches, no peak memory. Prints Markdown
and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from figures import Figure, Work, finish, in_turns, machine, over, table
from peers import Peer
from peers.products import Gradient, seconds, vectors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from skerch import HessianOperator
from skerch.curvature import supervised_loss
from skerch.curvature.backends import STRATEGIES, Choice
from skerch.curvature.hessian import MEMORY_FORMATS
from skerch.errors import SkerchError
from skerch.jobs.problems import build_model, load_problem

VECTORS, MATRIX = "curvlinops, one vector at a time", "curvlinops, matrix"
FRESH = "fresh double backward per vector"
LOOP, BATCHED = "one retained graph, loop", "one retained graph, is_grads_batched"
AUTO = "ours, auto"
GEMM = "a floating-point operation of a matrix product"
CHUNKS = (8, 32, 64)
QUICK = slice(1, 3)  # of the networks
PAIRS = 5
FORWARD = "forward"
LOSS = supervised_loss(cross_entropy)
CNN = "batch norm, 100"


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
    def convolves(self) -> bool:
        """Whether the memory format of images may matter."""
        return any(isinstance(layer, nn.Conv2d) for layer in self.network.modules())

    def operator(
        self, strategy: str = "auto", chunk_size: int | None = None, memory_format: str = "auto"
    ) -> HessianOperator:
        """Our operator, without its checks."""
        return HessianOperator(
            self.network,
            [self.batch],
            LOSS,
            strategy=strategy,
            chunk_size=chunk_size,
            memory_format=memory_format,
            check=False,
        )


def problem(name: str, **arguments: object) -> nn.Module:
    """A network that comes with skerch."""
    return build_model(load_problem({"name": name, **arguments}))


def batch_norm() -> nn.Module:
    """Three convolutions with batch norm and ReLU, 24,458 parameters."""
    layers: list[nn.Module] = []
    for channels, filters, stride in ((3, 16, 1), (16, 32, 2), (32, 64, 2)):
        convolution = nn.Conv2d(channels, filters, 3, stride, padding=1)
        layers += [convolution, nn.BatchNorm2d(filters), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def attention() -> nn.Module:
    """Two transformer layers over 16 tokens, 78,282 parameters."""
    layers = [nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True) for _ in range(2)]
    return nn.Sequential(nn.Linear(16, 64), *layers, nn.Flatten(), nn.Linear(1024, 10))


def cases(device: torch.device, quick: bool) -> list[Case]:
    """The networks, in eval mode, with random data: it does not change what a product costs."""
    torch.manual_seed(0)
    images = 20 if quick else 100
    mini, deep = problem("mnist_mini"), problem("cifar10_3c3d", synthetic=True)
    return [
        Case(
            f"{name}, {count}",
            network.to(device).eval(),
            (torch.rand(count, *shape, device=device), torch.arange(count, device=device) % 10),
            block,
        )
        for name, network, count, shape, block in (
            ("mnist_mini", mini, 100, (1, 16, 16), 64),
            ("mnist_mini", mini, 500, (1, 16, 16), 64),
            ("cifar10_3c3d", deep, 100, (3, 32, 32), 2 if quick else 8),
            ("batch norm", batch_norm(), images, (3, 32, 32), 16),
            ("attention", attention(), images, (16, 16), 16),
        )
    ]


def measure(
    case: Case,
    peer: Peer,
    device: torch.device,
    chunks: Sequence[int],
    formats: Sequence[str],
    budget: float,
) -> tuple[dict[str, float], Choice, list[Figure]]:
    """The least seconds by candidate, and of a forward pass; what `auto` chose; the figures."""
    few = min(8, case.block // 2)
    V = vectors(case.block, case.size, device)
    square = torch.rand(1024, 1024, device=device)
    frozen = ExitStack()  # as in a worker: the graph is built once for all blocks

    def theirs(count: int, matrix: bool) -> Work:
        return lambda: peer.ask("products", count=count, matrix=matrix)["seconds"] / count

    def torch_only(product: Callable[[Tensor], object], rows: Tensor) -> Work:
        return lambda: seconds(lambda: product(rows), device) / len(rows)

    def ours(op: HessianOperator) -> Work:
        return lambda: seconds(lambda: op @ V.T, device) / len(V)

    def kept(*choice: str | int) -> HessianOperator:
        op = case.operator(*choice)
        frozen.enter_context(op.frozen())
        return op

    def gradient() -> Gradient:
        return Gradient(case.network, case.batch)

    retained = gradient()
    works = {
        GEMM: lambda: seconds(lambda: square @ square, device) / (2 * len(square) ** 3),
        VECTORS: theirs(few, False),
        MATRIX: theirs(case.block, True),
        FRESH: torch_only(lambda rows: [gradient().loop(v[None]) for v in rows], V[:few]),
        LOOP: torch_only(retained.loop, V),
        BATCHED: torch_only(retained.batched, V),
    }
    formats = formats if case.convolves else ("preserve",)
    for name, strategy in STRATEGIES.items():
        sizes = {min(size, case.block) for size in (chunks if strategy.chunk_size > 1 else (1,))}
        for size in sorted(sizes):
            for memory_format in formats:
                label = f"ours: {describe(Choice(name, size, memory_format))}"
                work = ours(kept(name, size, memory_format))
                try:
                    work()
                except (RuntimeError, SkerchError) as refusal:
                    say(f"{case.name}: {label}: {refusal}")
                else:
                    works[label] = work
    auto = kept()
    choice = auto.resolve(case.block)
    works[AUTO] = ours(auto)
    if case.convolves:
        works |= {
            f"{FORWARD}, {memory_format}": forward(case, memory_format, device)
            for memory_format in MEMORY_FORMATS
        }
    with frozen:
        least = least_in_turns(works, budget)
        return least, choice, compare(case, works, least)


def forward(case: Case, memory_format: str, device: torch.device) -> Work:
    """Measures a forward pass without gradients."""
    layout = getattr(torch, f"{memory_format}_format", torch.channels_last)
    images = case.batch[0].to(memory_format=layout)
    network = deepcopy(case.network).to(memory_format=layout)

    def run() -> Tensor:
        with torch.no_grad():
            return network(images)

    return lambda: seconds(run, device)


def check(case: Case, peer: Peer, device: torch.device) -> None:
    """Refuse to compare with a peer that computes something else."""
    V = vectors(2, case.size, device)
    norm = float((case.operator("loop", 1, "preserve") @ V.T).norm())
    theirs = peer.ask("products", count=2, matrix=False)["norm"]
    if abs(theirs / norm - 1) > 1e-3:
        sys.exit(f"{case.name}: products have norm {norm:.6g}, and curvlinops' {theirs:.6g}.")


def least_in_turns(works: dict[str, Work], budget: float) -> dict[str, float]:
    """The least of many values of each function: they take turns until the budget is spent."""
    for work in works.values():
        work()  # warm-up
    found: dict[str, list[float]] = {name: [] for name in works}
    end = time.perf_counter() + budget
    while time.perf_counter() < end or not found[AUTO]:
        for name, work in works.items():
            found[name].append(work())
    return {name: min(values) for name, values in found.items()}


def operations(case: Case) -> tuple[int, int]:
    """Floating-point operations of a forward pass and of one product with a retained graph."""
    gradient, V = Gradient(case.network, case.batch), vectors(1, case.size, case.batch[0].device)
    with FlopCounterMode(display=False) as forward:
        case.network(case.batch[0])
    with FlopCounterMode(display=False) as product:
        gradient.loop(V)
    return forward.get_total_flops(), product.get_total_flops()


def peaks(device: str, chunk_size: int, blocks: Sequence[int]) -> list[float]:
    """The most MiB in use so far, before and after each block of so many columns.

    To be called in a process of its own.
    """
    torch.manual_seed(0)
    (case,) = (case for case in cases(torch.device(device), False) if case.name == CNN)
    op = case.operator("batched", chunk_size, "preserve")
    op.check = True  # as a worker's
    found = [_peak(device)]
    for columns in blocks:
        op @ vectors(columns, case.size, op.device).T
        found.append(_peak(device))
    return found


def _peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def describe(choice: Choice) -> str:
    """A choice in words."""
    size = f" of {choice.chunk_size}" if choice.chunk_size > 1 else ""
    channels_last = ", channels_last" if choice.memory_format == "channels_last" else ""
    return f"{choice.strategy}{size}{channels_last}"


def report(case: Case, least: dict[str, float], choice: Choice) -> None:
    """The table of a network: floor first."""
    forward, product = operations(case)
    gemm = least[GEMM]
    floor = product * gemm
    text = f"floor: {product / 1e6:.1f} MFLOP, {product / forward:.1f} forwards"
    rows: list[tuple[object, ...]] = [(f"{text}, at {1e-9 / gemm:.0f} GFLOP/s", floor * 1e3, 1.0)]
    for name, value in least.items():
        if name != GEMM:
            rows.append(
                (
                    f"{name}: {describe(choice)}" if name == AUTO else name,
                    value * 1e3,
                    value / floor,
                )
            )
    print(f"**{case.name} datapoints, N = {case.size:,}, blocks of {case.block}**\n")
    print(table(("", "ms a product", "over floor"), rows), end="\n\n", flush=True)


def say(progress: str) -> None:
    """A line of progress."""
    print(progress, file=sys.stderr, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller batches")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    chunks, formats, budget = CHUNKS, MEMORY_FORMATS, 20.0
    if options.quick:
        chunks, formats, budget = CHUNKS[-1:], MEMORY_FORMATS[:1], 1.0
    figures: list[Figure] = []
    with Peer("curvlinops_products") as peer:
        print(f"{machine()}\n", flush=True)
        networks = cases(device, options.quick)
        for case in networks[QUICK] if options.quick else networks:
            say(case.name)
            peer.load(case.network, case.batch)
            check(case, peer, device)
            least, choice, found = measure(case, peer, device, chunks, formats, budget)
            report(case, least, choice)
            figures += found
    if not options.quick:
        figures.append(memory(options.device))
    finish(figures)


def compare(case: Case, works: dict[str, Work], least: dict[str, float]) -> list[Figure]:
    """The figures of a network: `auto` against curvlinops, a forward pass, and the fastest."""

    def ratio(one: str, other: str) -> float:
        return over(*in_turns({name: works[name] for name in (one, other)}, PAIRS).values())

    def fastest(names: Iterable[str]) -> str:
        return min(names, key=least.__getitem__)

    targets = {"mnist_mini, 100": (20, 1.0), "mnist_mini, 500": (10, 1.0)}
    deep = case.name.startswith("cifar10_3c3d")
    found = [
        Figure(f"{case.name}: {name} over auto", ratio(name, AUTO), "≥", target, "x")
        for name, target in zip(
            (VECTORS, MATRIX), (1.4, 1.4) if deep else targets.get(case.name, ()), strict=False
        )
    ]
    forwards = {name for name in works if name.startswith(FORWARD)}
    if deep:
        value = ratio(AUTO, fastest(forwards))
        found.append(Figure(f"{case.name}: a product over the fastest forward", value, "≤", 9, "x"))
    best = fastest(works.keys() - forwards - {GEMM, AUTO})
    value = ratio(AUTO, best)
    return [*found, Figure(f"{case.name}: auto over {best}", value, "≤", 1.05, "x")]


def memory(device: str, chunk_size: int = 4) -> Figure:
    """The growth of the batched strategy's peak memory when a block grows eightfold."""
    blocks = (chunk_size, 8 * chunk_size)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        idle, *found = pool.apply(peaks, (device, chunk_size, blocks))
    rows = [
        (f"{columns} columns", peak - idle) for columns, peak in zip(blocks, found, strict=True)
    ]
    print(table((f"{CNN}, batched in chunks of {chunk_size}", "MiB"), rows), end="\n\n")
    name = "peak memory of a block eight times a chunk, over a chunk's"
    return Figure(name, (found[1] - idle) / (found[0] - idle), "≤", 1.5, "x")


if __name__ == "__main__":
    main()
