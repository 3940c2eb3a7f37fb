"""Kronecker factors and eigenvalue corrections beside curvlinops' and kronfluence's.

One thread, and what its processor has done. Labels are drawn once an example, or all are taken.
--quick: a small network, fewer turns, no eigendecomposition of a wide factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import (
    Benchmark,
    Figure,
    Options,
    apart,
    clock,
    in_turns,
    over,
    say,
    table,
)
from benchmarks.peers import Peer
from benchmarks.rates import machine, peak_bytes
from skerch.curvature import FisherOperator, supervised_loss
from skerch.curvature.memory import keep_freed_memory
from skerch.jobs.problems import build_model, load_problem
from skerch.kronecker.correction import Correction
from skerch.kronecker.eigenbasis import decompose
from skerch.kronecker.fit import eigenbases, factors_of
from skerch.kronecker.layers import find_layers
from skerch.kronecker.methods import make
from skerch.kronecker.sums import sum_up

BENCHMARK = Benchmark("docs/performance.md", make="bench")
BATCH, TURNS, WIDTH, RANK = 100, 5, 4096, 512
LABELS = {"one draw": 1, "all labels": 0}  # samples of each
WORKS = [f"{work}, {labels}" for labels in LABELS for work in ("factors", "correction")]


def measure(options: Options) -> Iterator[str | Figure]:
    """A row a network and work, in seconds for 1,000 examples; then a wide factor."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield machine()
    dense = nn.Sequential(
        *(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))
    )
    cases = [("784-512-256-10", dense, torch.randn(1000, 784))]
    if not options.quick:
        deep = build_model(load_problem({"name": "cifar10_3c3d", "synthetic": True}))
        cases.append(("cifar10_3c3d", deep, torch.randn(200, 3, 32, 32)))
    rows, figures = [], []
    for name, network, x in cases:
        say(name)
        turns = timed(network.eval(), (x, torch.arange(len(x)) % 10), 2 if options.quick else TURNS)
        scale = 1000 / len(x)
        gradient = turns["gradient"]
        for work in WORKS:
            ours = turns[f"ours, {work}"]
            cells: list[Any] = [name, work, scale * min(ours), over(ours, gradient)]
            for peer in ("curvlinops", "kronfluence"):
                theirs = turns.get(f"{peer}, {work}")
                cells.append("-" if theirs is None else over(theirs, ours))
                if theirs is not None:
                    figures.append(
                        Figure(f"{peer}'s time over ours, {name}, {work}", cells[-1], "≥", 1)
                    )
            rows.append(cells)
    header = (
        *("network", "work", "ours, s for 1,000", "gradients", "curvlinops over ours"),
        "kronfluence over ours",
    )
    yield table(header, rows)
    yield from figures
    if not options.quick:
        yield from memory()
        yield from wide()


def timed(network: nn.Module, batch: tuple[Tensor, Tensor], turns: int) -> dict[str, list[float]]:
    """Seconds of each work of each program."""
    data = list(zip(*(part.split(BATCH) for part in batch), strict=True))
    with Peer("kronfluence_factors") as peer:
        peer.load(network, batch)
        works = {**ours(network, data), **theirs(network, data)}
        timers: dict[str, Callable[[], float]] = {
            name: lambda work=work: clock(work, process_time) for name, work in works.items()
        }
        timers["kronfluence, factors, one draw"] = lambda: peer.ask("factors", batch_size=BATCH)
        timers["kronfluence, correction, one draw"] = lambda: peer.ask(
            "corrections", batch_size=BATCH
        )
        return in_turns(timers, turns)


def ours(
    network: nn.Module, data: list[Any], *, ready: bool = True
) -> dict[str, Callable[[], object]]:
    """Ours, and a gradient of all the data; corrections only with the factors made `ready`."""
    loss_fn, params = supervised_loss(nn.CrossEntropyLoss()), list(network.parameters())
    found: dict[str, Callable[[], object]] = {
        "gradient": lambda: [torch.autograd.grad(loss_fn(network, b), params) for b in data]
    }
    method = make("kfac")
    for label, samples in LABELS.items():
        op = FisherOperator.of_loss(network, data, loss_fn, samples=samples, check=False)
        layers = find_layers(network, op.params).covered
        found[f"ours, factors, {label}"] = lambda op=op, layers=layers: sum_up(op, layers, method)
        if ready:
            factors = factors_of(method, layers, sum_up(op, layers, method))
            correction = Correction(eigenbases(layers, factors))
            found[f"ours, correction, {label}"] = lambda op=op, ls=layers, c=correction: sum_up(
                op, ls, c
            )
    return found


def theirs(network: nn.Module, data: list[Any]) -> dict[str, Callable[[], object]]:
    """Curvlinops' factors; its corrections come with factors and eigenvectors, so are left out."""
    from curvlinops import FisherType, KFACLinearOperator  # which not everybody has

    kinds = {"one draw": FisherType.MC, "all labels": FisherType.TYPE2}
    params, criterion = list(network.parameters()), nn.CrossEntropyLoss()

    def factors(kind: Any) -> object:
        K = KFACLinearOperator(
            network, criterion, params, data, fisher_type=kind, check_deterministic=False
        )
        return K @ torch.zeros(K.shape[1])  # which has them computed

    return {
        f"curvlinops, factors, {label}": lambda kind=kind: factors(kind)
        for label, kind in kinds.items()
    }


def memory() -> Iterator[str]:
    """What factors of cifar10_3c3d take besides what was there, each in a process of its own."""
    rows = []
    for labels in LABELS:
        say(f"memory, {labels}")
        rows.append((labels, *(apart(peak, who, labels) / 2**20 for who in ("ours", "curvlinops"))))
    yield table(("cifar10_3c3d, MiB of factors", "ours", "curvlinops"), rows)


def peak(who: str, labels: str) -> int:
    """The bytes that a program's factors take at most, after a gradient."""
    torch.manual_seed(0)
    network = build_model(load_problem({"name": "cifar10_3c3d", "synthetic": True})).eval()
    x = torch.randn(2 * BATCH, 3, 32, 32)
    data = list(zip(x.split(BATCH), (torch.arange(len(x)) % 10).split(BATCH), strict=True))
    works = ours(network, data, ready=False) if who == "ours" else theirs(network, data)
    loss_fn = supervised_loss(nn.CrossEntropyLoss())
    torch.autograd.grad(loss_fn(network, data[0]), list(network.parameters()))
    before = peak_bytes()
    works[f"{who}, factors, {labels}"]()
    return peak_bytes() - before


def wide() -> Iterator[str | Figure]:
    """The eigendecomposition of a wide factor with decaying eigenvalues, exact and sketched."""
    say(f"a factor {WIDTH} wide")
    Q, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH))
    factor = ((Q * torch.arange(1, WIDTH + 1) ** -1.0) @ Q.T)[None]
    found: dict[str, Any] = {}

    def work(how: str) -> None:
        found[how] = decompose(factor, how=how, rank=RANK)

    times = {how: clock(lambda how=how: work(how), process_time) for how in ("exact", "sketched")}
    exact = found["exact"].values[0].flip(0)[:RANK]
    error = float(((found["sketched"].values[0, :RANK] - exact).abs() / exact)[: RANK // 2].max())
    header = (f"a factor {WIDTH:,} wide", "seconds", f"largest error of the first {RANK // 2}")
    rows = [("exact, float64", times["exact"], "-"), (f"rank {RANK}", times["sketched"], error)]
    yield table(header, rows)
    ratio = times["exact"] / times["sketched"]
    yield Figure(f"exact eigendecomposition's time over rank {RANK}'s", ratio, "≥", 3)
