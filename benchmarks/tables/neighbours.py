"""A start: products of the Hessian until 1.12 times the best residual, from what is known nearby.

The Hessians of mnist_mini at its eleven steps, of both splits. The start is the eigenvectors of the
step before, of one Hessian for all (the last step's, of train), of the other split, or of nothing.
The best residual is that of many more products, of 100 probes: right to half a per cent.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from benchmarks.exact import mnist_mini, network
from benchmarks.harness import Benchmark, Figure, Options, table
from skerch import seigh
from skerch.curvature import HessianOperator
from skerch.curvature.memory import keep_freed_memory
from skerch.decompositions.seigh import EighResult
from skerch.jobs.config import Config
from skerch.jobs.problems import load_problem
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.training_files import load_hessian_data, load_parameters
from skerch.jobs.training.session import train

BENCHMARK = Benchmark("docs/accuracy.md", make="accuracy")
KS, PRODUCTS, WANTED = (355, 100), 2.4, 1.12
SPLITS = "train", "test"
# products over k that are tried
MANY, TWO, STARTED = (1.1, 1.2, 1.3), (1.9, 2.1, 2.3), (1.2, 1.5, 1.9, 2.3)
HEADER = ("step", "split", "from nothing, many rounds", "two rounds: from nothing", "step before",
          "step 1000, train", "other split", "part explained: step before", "step 1000, train",
          "other split")  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A Hessian with its eigenpairs, from many more products than are compared."""

    op: HessianOperator
    pairs: EighResult

    def excess(self, found: EighResult) -> float:
        """The residual over the best one, of H = its best approximation + what is orthogonal."""
        k, W, values = len(found.eigenvalues), found.eigenvectors, found.eigenvalues
        with self.op.frozen():
            HW = torch.cat([self.op @ part for part in W.split(64, dim=1)], dim=1).double()
        W = W.double()
        of_best = float(self.pairs.eigenvalues[:k].square().sum())
        products = float((values * (W * HW).sum(dim=0)).sum())
        own = float((torch.outer(values, values) * (W.T @ W).square()).sum())
        best = float(self.pairs.residual[k])
        return math.sqrt(max(0.0, 1 + (of_best - 2 * products + own) / best**2))


def measure(options: Options) -> Iterator[str | Figure]:
    """A table for each k: rows by step and split."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        steps = f"training.record_steps={list(range(0, 1001, 100))}"
        config = mnist_mini(options.root, f"run_dir={folder}", steps, "hessian.splits=[train,test]")
        run = RunDir(config.run_dir)
        run.training.mkdir(parents=True)
        train(run, config)
        hessians = {
            (step, split): known(config, run, step, split)
            for step in config.training.record_steps
            for split in SPLITS
        }
    for k in KS:
        rows = [row(hessians, k, *each) for each in hessians]
        columns = [
            [each for each in column if each is not None] for column in zip(*rows, strict=True)
        ]
        means = [mean(column) for column in columns[2:]]
        shown = [[*each[:2], *map(_short, each[2:])] for each in rows]
        title = f"mnist_mini, k = {k}: products over k for {WANTED} times the best residual"
        yield table(HEADER, [*shown, ["all", "mean", *map(_short, means)]], title)
        for name, value in zip(HEADER[4:7], means[2:5], strict=True):
            yield Figure(f"k = {k}, start of the {name}: of two rounds' products from nothing",
                         value / means[1], "≤", 1.0)  # fmt: skip


def known(config: Config, run: RunDir, step: int, split: str) -> Known:
    """A Hessian of the run, in single precision."""
    problem = load_problem(config.problem)
    model = network(problem, load_parameters(run, step))
    batch = load_hessian_data(run, split)
    op = HessianOperator(model, [batch], problem.loss_fn, strategy="tape", chunk_size=64)
    return Known(op, seigh(op, outer=max(KS), inner=int(PRODUCTS * max(KS)), probes=100))


def row(hessians: dict[tuple[int, str], Known], k: int, step: int, split: str) -> list[object]:
    """The products over k of each way, and what part of the probes' products starts explain."""
    own = hessians[step, split]
    other = SPLITS[split == SPLITS[0]]
    sources = [(step - 100, split), (1000, "train"), (step, other)]
    many = needed(own, k, MANY, lambda inner: seigh(own.op, outer=k, inner=inner))
    two = needed(own, k, TWO, lambda inner: seigh(own.op, outer=k, inner=inner, rounds=2))
    spent: list[float | None] = []
    explained: list[float | None] = []
    for source in sources:
        if source not in hessians or source == (step, split):
            spent.append(None)
            explained.append(None)
            continue
        W = hessians[source].pairs.eigenvectors[:, :k]
        last: list[EighResult] = []

        def started(inner: int, W: Tensor = W, last: list[EighResult] = last) -> EighResult:
            last.append(seigh(own.op, outer=k, inner=inner, rounds=2, start=W))
            return last[-1]

        spent.append(needed(own, k, STARTED, started))
        explained.append(last[-1].health["start"])
    return [step, split, many, two, *spent, *explained]


def needed(
    own: Known, k: int, tried: tuple[float, ...], run: Callable[[int], EighResult]
) -> float | None:
    """Products over k for the wanted residual, between those tried; None where all leave more."""
    before: tuple[float, float] | None = None
    for products in tried:
        excess = math.log(max(own.excess(run(round(products * k))) - 1, 1e-9))
        if excess <= math.log(WANTED - 1):
            if before is None:
                return products
            share = (before[1] - math.log(WANTED - 1)) / (before[1] - excess)
            return before[0] + share * (products - before[0])
        before = products, excess
    return None


def _short(value: object) -> str:
    return "-" if value is None else f"{value:.2f}"
