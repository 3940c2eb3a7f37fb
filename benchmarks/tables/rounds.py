"""Many small rounds beside SciPy's eigsh: the first k eigenpairs of two networks at equal products.

Eigenvalues are matched one to one with the exact ones, errors are relative. The probes, 30 products
more for the error bounds, are not counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from copy import deepcopy
from statistics import median
from time import perf_counter

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from benchmarks.exact import Exact, eigh, kept, load_exact, mnist_mini, network
from benchmarks.harness import Benchmark, Figure, Options, table
from benchmarks.runs import begin
from skerch import seigh
from skerch.curvature import HessianOperator
from skerch.curvature.batching import to_device
from skerch.curvature.dense import dense_hessian
from skerch.curvature.memory import keep_freed_memory
from skerch.decompositions.recoveries import default_inner, default_rounds
from skerch.jobs.config import load
from skerch.jobs.problems import load_data, load_problem
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs
from skerch.jobs.training.datapoints import hessian_batch

BENCHMARK = Benchmark("docs/accuracy.md", make="accuracy")
STEP, KS, SEEDS = 1000, (10, 20, 100, 355), 3
FEWER = {100: 130, 355: 444}  # products that shall leave at most 1.12 times the best residual
HEADER = ("k", "method", "products", "rounds", "residual / best", "error: median", "worst",
          "worst ‖Hw - λw‖ / |λ|", "within their bounds", "seconds")  # fmt: skip


def measure(options: Options) -> Iterator[str | Figure]:
    """Rows by k and method."""
    keep_freed_memory()
    cases = {f"mnist_mini, step {STEP}": (load_exact(options.root, STEP), operator(options))}
    with tempfile.TemporaryDirectory(prefix="skerch-rounds-") as folder:
        for name, (exact, op) in (cases | digits(folder)).items():
            yield from beside_eigsh(name, exact, op)


def beside_eigsh(name: str, exact: Exact, op: HessianOperator) -> Iterator[str | Figure]:
    """The rows and figures of one Hessian."""
    rows: list[list[object]] = []
    for k in KS:
        spent, seconds, values, W = scipys(op, k)
        its = errors(exact, values, W)
        rows.append([k, "eigsh, tol 1e-3", spent, "-", *map(_short, its), "-", seconds])
        for inner in (
            spent,
            None,
            *([FEWER[k]] if k in FEWER and name.startswith("mnist") else []),
        ):
            found = [ours(op, exact, k, inner, seed) for seed in range(SEEDS)]
            own = [median(column) for column in zip(*(each[0] for each in found), strict=True)]
            within = sum(each[1] for each in found) / SEEDS
            took = median(each[2] for each in found)
            method = "seigh, its default" if inner is None else "seigh"
            products, rounds = found[0][3]
            figures = *map(_short, own), f"{within:.0%}", took
            rows.append([k, method, products, rounds, *figures])
            if inner == spent:
                yield Figure(
                    f"{name}, k = {k}: residual / best at eigsh's products", own[0], "≤", 1.002
                )
                yield Figure(f"{name}, k = {k}: median error", own[1], "≤", 1e-5, form=".1e")
                yield Figure(f"{name}, k = {k}: worst error", own[2], "≤", 1e-2, form=".1e")
                share = 1.0 if k <= 20 else 0.1
                yield Figure(f"{name}, k = {k}: seconds over eigsh's", took / seconds, "≤", share)
            elif inner is not None:
                yield Figure(
                    f"{name}, k = {k}: residual / best of {inner} products", own[0], "≤", 1.12
                )
            yield Figure(
                f"{name}, k = {k}, {products}: eigenvalues within bounds", within, "≥", 0.95
            )
    yield table(HEADER, rows, f"{name}: many small rounds beside eigsh")


def digits(folder: str) -> dict[str, tuple[Exact, HessianOperator]]:
    """The exact Hessians of digits on the test split, as initialised and trained; and operators."""
    config = load("digits", [f"run_dir={folder}/digits", "training.lr=0.3", "launcher.threads=1"])
    run, _ = begin(config, first=1)
    found = {}
    for step in (0, config.training.max_steps):
        inputs = load_inputs(Context(run, config, "seigh", step, "test"))
        op = HessianOperator(
            inputs.model, [inputs.data], inputs.problem.loss_fn, strategy="tape", chunk_size=64
        )
        op @ torch.eye(op.shape[0], 64)
        double, data = deepcopy(inputs.model).double(), to_device(inputs.data, "cpu", torch.float64)
        names = [name for name, _ in double.named_parameters()]
        H = dense_hessian(double, names, data, inputs.problem.loss_fn)
        found[f"digits, step {step}"] = Exact(H, eigh(H)[0], None), op
    return found


def operator(options: Options) -> HessianOperator:
    """The Hessian of the experiment, in single precision."""
    config = mnist_mini(options.root)
    problem = load_problem(config.problem)
    batch = hessian_batch(load_data(problem, "test"), "test", config.hessian)
    model = network(problem, kept(STEP)["parameters"])
    op = HessianOperator(model, [batch], problem.loss_fn, strategy="tape", chunk_size=64)
    op @ torch.eye(op.shape[0], 64)  # warm, and checked
    return op


def scipys(op: HessianOperator, k: int) -> tuple[int, float, Tensor, Tensor]:
    """The products that eigsh takes, its seconds, and its pairs."""
    spent = 0

    def product(v: np.ndarray) -> np.ndarray:
        nonlocal spent
        spent += 1
        return (op @ torch.from_numpy(v.astype(np.float32)).view(-1)).numpy()

    start = perf_counter()
    with op.frozen():
        of = LinearOperator(op.shape, product, dtype=np.float32)
        values, vectors = eigsh(of, k, which="LM", tol=1e-3, v0=np.ones(op.shape[0], np.float32))
    return spent, perf_counter() - start, torch.from_numpy(values), torch.from_numpy(vectors)


def ours(
    op: HessianOperator, exact: Exact, k: int, inner: int | None, seed: int
) -> tuple[tuple[float, ...], float, float, tuple[int, int]]:
    """Errors, the share of eigenvalues within their bounds, seconds, products and rounds."""
    start = perf_counter()
    found = seigh(op, outer=k, inner=inner, seed=seed)
    seconds = perf_counter() - start
    nearest = (found.eigenvalues[:, None] - exact.eigenvalues).abs().min(dim=1).values
    within = float((nearest <= found.eigenvalue_bound).double().mean())
    spent = default_inner(k) if inner is None else inner
    plan = spent, default_rounds("nystrom", k, spent)
    return errors(exact, found.eigenvalues, found.eigenvectors), within, seconds, plan


def errors(exact: Exact, values: Tensor, W: Tensor) -> tuple[float, ...]:
    """Residual over best, median and worst error of eigenvalues, the worst pair's residual."""
    values, W, k = values.double(), W.double(), len(values)
    best = float(torch.linalg.norm(exact.eigenvalues[k:]))
    residual = float(torch.linalg.norm(exact.H - (W * values) @ W.T))
    candidates = exact.eigenvalues[: 2 * k]
    off = (values[:, None] - candidates).abs() / candidates.abs()
    matched = off[linear_sum_assignment(off.numpy())]
    pairs = torch.linalg.norm(exact.H @ W - W * values, dim=0) / values.abs()
    return residual / best, float(matched.median()), float(matched.max()), float(pairs.max())


def _short(value: float) -> str:
    return f"{value:.4f}" if value > 0.5 else f"{value:.0e}"
