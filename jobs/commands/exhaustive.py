"""Sketched against exact: the whole Hessian by automatic differentiation, for small networks.

The exact Hessian is made in float64 by a path that shares nothing with the operator that was
sketched (see `skerch.curvature.dense`), and its decomposition is kept beside the sketched one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from torch import Tensor, nn

from skerch.analysis.figures import hessian_figure, save
from skerch.analysis.overlap import overlap
from skerch.analysis.results import ExactResults, HessianResults
from skerch.curvature.batching import to_device
from skerch.curvature.dense import dense_hessian, hessian_rows
from skerch.curvature.losses import LossFn
from skerch.curvature.parameters import params_to_vector, select_parameters
from skerch.errors import SkerchError
from skerch.jobs.commands.check import sample_inputs
from skerch.jobs.commands.plan import duration
from skerch.jobs.config import Config, ConfigError
from skerch.jobs.launchers import progress as console
from skerch.jobs.launchers.preflight import count_parameters
from skerch.jobs.pipeline import Task
from skerch.jobs.problems import user_code
from skerch.jobs.run_dir import RunDir, exact_file, method_name, results_file
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import Inputs, load_inputs
from skerch.jobs.stages.operator import curvature_operator
from skerch.jobs.stages.program import settle
from skerch.jobs.stages.sketch import SketchFiles

LARGEST = 20_000  # parameters: their Hessian takes 3.2 GB, and its eigenvectors an hour
MATRICES = 4  # (N, N) at once: the Hessian, its eigenvectors, and twice that as LAPACK's workspace
TRIAL = 1000  # rows of the Hessian that foretell how long its eigendecomposition takes


class ExhaustiveError(SkerchError):
    """A network whose exact Hessian cannot be had."""


@dataclass(frozen=True)
class Comparison:
    """Sketched eigenpairs beside the exact decomposition of the same Hessian."""

    sketched: HessianResults
    exact: ExactResults
    W: Tensor  # (N, k), sketched
    vectors: Tensor  # (N, k), exact
    achieved: float  # the residual of the sketched eigenpairs

    def eigenvalues(self) -> Iterator[tuple[str, float, float]]:
        """Each sketched eigenvalue, and the exact one of the same place."""
        pairs = zip(self.sketched.eigenvalues, self.exact.eigenvalues, strict=False)
        for number, (sketched, exact) in enumerate(pairs, start=1):
            yield f"eigenvalue {number}", sketched, exact

    def summary(self) -> Iterator[tuple[str, float, float]]:
        """The magnitude that is off the most, and what is sketched and exact of the whole."""
        name, values, exact = max(self.eigenvalues(), key=self._error)
        yield f"{name}, off the most", values, exact
        k, estimate, best = self.W.shape[1], self.sketched.residual, self.exact.residual
        yield "‖H‖_F, estimated", estimate[0], best[0]
        yield f"residual at rank {k}, estimated", estimate[-1], self.achieved
        yield f"residual at rank {k}, over the best", self.achieved, best[k]
        half = max(k // 2, 1)
        captured = torch.linalg.norm(self.vectors[:, :half].T @ self.W).square() / half
        yield f"top {half} eigenspace captured", float(captured), 1.0
        yield f"overlap at k = {k}", self.sketched.overlap[-1], self.exact.overlap[-1]

    def _error(self, row: tuple[str, float, float]) -> float:
        """How far the magnitudes of a row are apart, as near eigenvalues may swap places."""
        _, sketched, exact = row
        return abs(abs(sketched / exact) - 1) if abs(exact) > self.rounding else 0.0

    @property
    def rounding(self) -> float:
        """What is zero beside the largest eigenvalue."""
        return 1e-12 * abs(self.exact.eigenvalues[0])


def prepare(config: Config, step: int | None, split: str | None) -> Context:
    """The Hessian that is to be compared; refused, before anything runs, where that cannot be.

    Raises:
        ConfigError: there is no such step or split, the config is of no sketched Hessian, or the
            loss does not work in float64.
        ExhaustiveError: the network or its Hessian is too large.
    """
    steps, splits = config.training.record_steps, config.hessian.splits
    step, split = steps[-1] if step is None else step, splits[-1] if split is None else split
    if step not in steps or split not in splits:
        raise ConfigError(
            f"There is no step {step} of split {split}; recorded are {steps} of {splits}."
        )
    if (config.method, config.hessian.curvature) != ("seigh", "hessian"):
        raise ConfigError(
            "exhaustive compares a sketched Hessian with the exact one, and this is of method="
            f"{config.method}, hessian.curvature={config.hessian.curvature}."
        )
    context = Context(RunDir(config.run_dir), config, method_name(config), step, split)
    if not context.directory.exact.exists():
        _check_size(count_parameters(config))
        inputs = sample_inputs(config)
        with user_code("The loss cannot be computed"):
            curvature_operator(config, inputs).loss()
        with user_code(
            "The loss cannot be differentiated twice in float64, as exhaustive does (what it makes "
            "must have the dtype of the parameters or the batch)"
        ):
            next(hessian_rows(*_in_float64(config, inputs)))
    return context


def _check_size(N: int) -> None:
    """Refuse a Hessian that is too large for this machine, or for any."""
    way_out = "select some by hessian.param_filter"
    if N > LARGEST:
        raise ExhaustiveError(
            f"The exact Hessian of {N:,} parameters does not fit; exhaustive takes at most "
            f"{LARGEST:,}: {way_out}."
        )
    needed, room = 8 * MATRICES * N**2, free_memory()
    if room is not None and needed > room:
        raise ExhaustiveError(
            f"The exact Hessian of {N:,} parameters takes {decimal(needed)} of memory, and "
            f"{decimal(room)} are free here: {way_out}, or take a larger machine."
        )


def print_comparison(context: Context) -> None:
    """Print all sketched eigenvalues, the residual and the overlap beside the exact ones."""
    found = compare(context)
    k, N = len(found.sketched.eigenvalues), len(found.exact.eigenvalues)
    title = f"step {context.step}, {context.split} split: {k} of {N:,} eigenpairs"
    table = Table(title=title)
    for heading in ("", "sketched", "exact", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for part in (found.eigenvalues(), found.summary()):
        for name, sketched, exact in part:
            ratio = f"{sketched / exact:.4f}" if abs(exact) > found.rounding else "-"
            table.add_row(name, f"{sketched:.6g}", f"{exact:.6g}", ratio)
        table.add_section()
    Console().print(table)

    path = context.run.figure(f"{context.name}-exact", *context.hessian)
    save(hessian_figure(found.sketched, title, found.exact), path)
    for line in (f"exact   {context.directory.exact}", f"figure  {path}"):
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def compare(context: Context) -> Comparison:
    """The exact decomposition of a context's Hessian, made once, beside the sketched one."""
    inputs, config = load_inputs(context), context.config
    theta = params_to_vector(select_parameters(inputs.model, config.hessian.param_filter))
    with SketchFiles(context).eigh() as file:
        W, values, manifests = file.eigenvectors[:].double(), file.eigenvalues, file.manifests
    if not context.directory.exact.exists():
        exact_file.write(
            context.directory.exact, *_decompose(context, inputs, values, W), manifests
        )
    with SketchFiles(context).exact() as file:
        vectors, achieved = file.eigenvectors[:], file.achieved
        exact = ExactResults(
            eigenvalues=file.eigenvalues.tolist(),
            residual=file.residual.tolist(),
            overlap=overlap(vectors, theta, random_masks=0).overlap.tolist(),
        )
    sketched = results_file.read(context.directory.overlap, HessianResults)
    return Comparison(sketched, exact, W, vectors, achieved)


def _decompose(
    context: Context, inputs: Inputs, values: Tensor, W: Tensor
) -> tuple[Tensor, Tensor, float]:
    """All exact eigenvalues, as many eigenvectors as in W (N, k), and the residual of W."""
    settle("train", Context(context.run, context.config, context.name))  # alone, as that is
    rows, solve = (
        Task(f"exhaustive.{name}", "exhaustive", {}, (), ()) for name in ("hessian", "eigh")
    )
    with console.report(2) as report:
        report.started(rows)
        with user_code("The exact Hessian cannot be computed"):
            H = dense_hessian(
                *_in_float64(context.config, inputs),
                lambda done, total: report.progress(rows, done, total, "rows"),
            )
        report.ended(rows, None)
        achieved = float(torch.linalg.norm(H - (W * values) @ W.T))
        begin = time.perf_counter()
        if len(H) > 2 * TRIAL:
            torch.linalg.eigh(H[:TRIAL, :TRIAL])
            seconds = (time.perf_counter() - begin) * (len(H) / TRIAL) ** 3
            print(f"The eigendecomposition takes about {duration(seconds)}.", flush=True)
        report.started(solve)
        exact, vectors = torch.linalg.eigh(H)
        report.ended(solve, None)
    order = exact.abs().argsort(descending=True)
    return exact[order], vectors[:, order[: len(values)]], achieved


def _in_float64(config: Config, inputs: Inputs) -> tuple[nn.Module, list[str], Any, LossFn]:
    """The network, the names of the selected parameters, the batch and the loss."""
    model = inputs.model.double().cpu()
    names = list(select_parameters(model, config.hessian.param_filter))
    return model, names, to_device(inputs.data, "cpu", torch.float64), inputs.problem.loss_fn


def free_memory() -> int | None:
    """Bytes that this process can have on Linux, by what is free and its limit; else None."""
    found = []
    with suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        found += [1024 * int(kib) for kib in re.findall(r"MemAvailable: +(\d+)", text)]
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("::")[2].strip()
        folder = Path(f"/sys/fs/cgroup{group}")
        for limit in [parent / "memory.max" for parent in (folder, *folder.parents)]:
            with suppress(OSError, ValueError):  # "max": as much as there is
                found.append(int(limit.read_text(encoding="utf-8")))
    return min(found, default=None)
