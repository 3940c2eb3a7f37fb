"""Kronecker-factored approximations: the top eigenspaces that they capture, by exact matrices.

Trained networks on their test data, in float64. Overlap and residual are those of
`skerch.analysis.approximation`, of the exact Hessian and GGN. --quick: digits only, no picture.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import scipy.linalg
import torch
from torch import Tensor

from benchmarks.exact import CACHE, Exact, eigh, hessian, kept, load_exact, mnist_mini, network
from benchmarks.harness import Benchmark, Figure, Options, digits, say, table
from benchmarks.pictures import Curves, draw
from skerch.analysis.approximation import ApproximationResult, approximate
from skerch.curvature import EmpiricalFisherOperator, FisherOperator, GGNOperator, LossCurvature
from skerch.curvature.batching import to_device
from skerch.jobs.config import Config, load
from skerch.jobs.problems import load_data, load_problem
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.training_files import load_parameters
from skerch.jobs.training.datapoints import hessian_batch
from skerch.jobs.training.session import train
from skerch.kronecker.fit import kronecker
from skerch.kronecker.operator import KroneckerOperator
from skerch.linops.base import LinearOperator
from skerch.linops.structured import DenseOperator

BENCHMARK = Benchmark("docs/kronecker.md", make="accuracy")
TOP, FEW = 100, 10
ROWS: dict[str, tuple[str, dict[str, Any]]] = {  # method and options
    "kfac": ("kfac", {}),
    "ekfac": ("ekfac", {}),
    **{
        method + ", corrected" * correction: (method, {"correction": correction})
        for method in ("tkfac", "shampoo", "nearest")
        for correction in (False, True)
    },
    "ekfac, drawn labels": ("ekfac", {"samples": 1}),
    "ekfac, labels of the data": ("ekfac", {"kind": EmpiricalFisherOperator}),
    "autocorrelation": ("autocorrelation", {}),
}
HEADER = (
    "",
    *(f"overlap: {matrix}'s top {k}" for matrix in ("Hessian", "GGN") for k in (FEW, TOP)),
    *(f"residual: {matrix}'s top {TOP}" for matrix in ("Hessian", "GGN")),
    "error of the GGN",
    "trace over the GGN's",
)
LOOKS = {
    "kfac": ("#0072B2", "--"),
    "ekfac": ("#0072B2", "-"),
    "shampoo, corrected": ("#D55E00", "-"),
    "autocorrelation": ("#1A1A1A", "-"),
    "ekfac, labels of the data": ("#8C8C8C", "-."),
    "the GGN itself": ("#1A1A1A", ":"),
}


@dataclass(frozen=True)
class Case:
    """A trained network, with its exact matrices."""

    name: str
    config: Config
    parameters: Tensor
    hessian: Exact
    ggn: Exact


@dataclass(frozen=True)
class Found:
    """An approximation beside the exact matrices."""

    hessian: ApproximationResult
    ggn: ApproximationResult
    error: float  # ‖F̂ - G‖_F / ‖G‖_F
    trace: float  # over the GGN's

    @property
    def cells(self) -> list[str]:
        """Its numbers of a row."""
        both = self.hessian, self.ggn
        overlaps = [float(found.overlap[k - 1]) for found in both for k in (FEW, TOP)]
        residuals = [float(found.residual[0]) for found in both]
        return [digits(value) for value in (*overlaps, *residuals, self.error, self.trace)]


def measure(options: Options) -> Iterator[str | Figure]:
    """A table a network, then what must hold of it."""
    panels = []
    for case in cases(options):
        found = {}
        for name, (method, asked) in ROWS.items():
            say(f"{case.name}, {name}")
            op = approximation(case, method, **asked)
            found[name] = compare(case, op, op.top(TOP)[1], op.trace())
        G = DenseOperator(case.ggn.H, self_adjoint=True)
        trace = float(case.ggn.H.trace())
        found["the GGN itself"] = compare(case, G, _pairs(case.ggn)[1], trace)
        N = len(case.parameters)
        chance = ["chance", *[digits(k / N) for k in (FEW, TOP)] * 2, *"----"]
        rows = [[name, *each.cells] for name, each in found.items()]
        yield table(HEADER, [*rows, chance], f"{case.name}, N = {N:,}")
        yield from figures(case.name, found)
        panels.append(panel(case.name, {name: found[name] for name in LOOKS}))
    if not options.quick:
        draw("approximations", *panels)


def figures(name: str, found: dict[str, Found]) -> Iterator[Figure]:
    """No other eigenvalues are nearer in a basis, and no other matrix of blocks is nearer."""
    for method in ("tkfac", "shampoo", "nearest", "kfac"):
        better = found["ekfac" if method == "kfac" else f"{method}, corrected"]
        title = f"{name}, {method}: error of the GGN, corrected over not"
        yield Figure(title, better.error / found[method].error, "≤", 1)
    least = min(found[row].error for row in ROWS if "labels" not in row)
    ratio = found["autocorrelation"].error / least
    yield Figure(f"{name}: autocorrelation's error of the GGN over the least", ratio, "≤", 1)


def panel(name: str, found: dict[str, Found]) -> tuple[Curves, dict[str, Any]]:
    """Overlaps against k."""
    ks = range(1, TOP + 1)
    curves = {row: (LOOKS[row], ks, each.hessian.overlap.tolist()) for row, each in found.items()}
    settings = {"title": name, "xlabel": "k", "ylabel": "overlap with the Hessian's top k"}
    return curves, settings | {"ylim": (0, 1)}


def cases(options: Options) -> Iterator[Case]:
    """The networks, trained."""
    with tempfile.TemporaryDirectory() as folder:
        config = load("digits", [f"run_dir={folder}", "training.lr=0.3", "hessian.splits=[test]"])
        run = RunDir(config.run_dir)
        run.training.mkdir(parents=True)
        train(run, config)
        parameters = load_parameters(run, config.training.max_steps)
    H = hessian(config, parameters)
    yield _case("digits", config, parameters, Exact(H, *eigh(H)))
    if not options.quick:
        config, step = mnist_mini(options.root), 1000
        parameters = kept(step)["parameters"]
        yield _case("mnist_mini", config, parameters, load_exact(options.root, step, CACHE))


def _case(name: str, config: Config, parameters: Tensor, of_hessian: Exact) -> Case:
    say(f"{name}, GGN")
    G = dense(operator(config, parameters, GGNOperator))
    G = (G + G.T) / 2
    N = len(G)
    values, vectors = scipy.linalg.eigh(G.numpy(), subset_by_index=(N - TOP, N - 1))
    ggn = Exact(G, *(torch.from_numpy(each.copy()).flip(-1) for each in (values, vectors)))
    return Case(name, config, parameters, of_hessian, ggn)


def operator(
    config: Config, parameters: Tensor, kind: type[LossCurvature], **options: Any
) -> LossCurvature:
    """A curvature of a network in float64."""
    problem = load_problem(config.problem)
    batch = hessian_batch(load_data(problem, "test"), "test", config.hessian)
    data = to_device(batch, "cpu", torch.float64)
    model = network(problem, parameters).double()
    return kind.of_loss(model, [data], problem.loss_fn, **options)


def dense(op: LinearOperator) -> Tensor:
    """An operator as a matrix (N, N)."""
    unit = torch.eye(op.shape[0], dtype=torch.float64)
    return torch.cat([op @ part for part in unit.split(512, dim=1)], dim=1)


def approximation(
    case: Case,
    method: str,
    kind: type[LossCurvature] = FisherOperator,
    samples: int = 0,
    **options: Any,
) -> KroneckerOperator:
    """A method's approximation of a Fisher matrix."""
    drawn = {"samples": samples} if samples else {}
    op = operator(case.config, case.parameters, kind, **drawn)
    return kronecker(op, method, **options)  # type: ignore[arg-type]


def compare(case: Case, op: LinearOperator, top: Tensor, trace: float) -> Found:
    """An approximation, its top eigenvectors and its trace beside the exact matrices."""
    G = case.ggn.H
    error = float((dense(op) - G).norm() / G.norm())
    of_hessian, of_ggn = (approximate(op, top, *_pairs(m)) for m in (case.hessian, case.ggn))
    return Found(of_hessian, of_ggn, error, trace / float(G.trace()))


def _pairs(exact: Exact) -> tuple[Tensor, Tensor]:
    assert exact.vectors is not None
    return exact.eigenvalues[:TOP], exact.vectors[:, :TOP]
