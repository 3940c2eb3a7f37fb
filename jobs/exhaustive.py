"""Sketched against exact: the whole Hessian by automatic differentiation, for small networks.

The exact Hessian is computed in float64 by `torch.func`, a path that shares nothing with the
operator that was sketched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from skerch.analysis.figures import hessian_figure, save
from skerch.analysis.overlap import overlap
from skerch.curvature.batching import to_device
from skerch.curvature.losses import LossFn
from skerch.curvature.parameters import params_to_vector, select_parameters
from skerch.errors import SkerchError
from skerch.jobs.config import Config, ConfigError
from skerch.jobs.operators import load_inputs
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.stage import Context

LARGEST = 20_000  # parameters: their Hessian takes 3.2 GB, and its eigenvectors as much again


class ExhaustiveError(SkerchError):
    """A network that is too large for its exact Hessian."""


@dataclass(frozen=True)
class Comparison:
    """Sketched eigenpairs beside the exact decomposition of the same Hessian."""

    H: Tensor  # (N, N)
    exact: Tensor  # (N,), by decreasing magnitude
    vectors: Tensor  # (N, N)
    values: Tensor  # (k,), sketched
    W: Tensor  # (N, k), sketched
    estimate: Tensor  # (k + 1,), estimated residuals
    theta: Tensor  # (N,), the parameters

    def rows(self) -> Iterator[tuple[str, float, float]]:
        """What is compared, sketched and exact; an eigenvalue with that of the nearest vector."""
        k = len(self.values)
        nearest = (self.vectors.T @ self.W[:, :10]).abs().argmax(dim=0)
        for index, twin in enumerate(nearest):
            yield f"eigenvalue {index + 1}", float(self.values[index]), float(self.exact[twin])
        norm = torch.linalg.norm(self.exact)
        residual = torch.linalg.norm(self.H - (self.W * self.values) @ self.W.T)
        yield "‖H‖_F, estimated", float(self.estimate[0]), float(norm)
        yield f"residual at rank {k}, estimated", float(self.estimate[-1]), float(residual)
        best = torch.linalg.norm(self.exact[k:])
        yield f"residual at rank {k}, over the best", float(residual), float(best)
        half = max(k // 2, 1)
        captured = torch.linalg.norm(self.vectors[:, :half].T @ self.W).square() / half
        yield f"top {half} eigenspace captured", float(captured), 1.0
        sketched, exact = (
            overlap(U, self.theta, random_masks=0).overlap[-1]
            for U in (self.W, self.vectors[:, :k])
        )
        yield f"overlap at k = {k}", float(sketched), float(exact)


def print_comparison(config: Config, step: int | None, split: str | None) -> None:
    """Compare one Hessian's sketched eigenpairs, residual and overlap with the exact ones."""
    steps, splits = config.training.record_steps or [], config.hessian.splits
    step, split = steps[-1] if step is None else step, splits[-1] if split is None else split
    if step not in steps or split not in splits:
        raise ConfigError(
            f"There is no step {step} of split {split}; recorded are {steps} of {splits}."
        )
    context = Context(RunDir(config.run_dir), config, method_name(config), step, split)
    found = compare(context)
    title = f"step {step}, {split} split: {len(found.values)} of {len(found.exact):,} eigenpairs"
    table = Table(title=title)
    for heading in ("", "sketched", "exact", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    rounding = 1e-12 * float(found.exact[:1].abs().sum())
    for name, sketched, exact in found.rows():
        ratio = f"{sketched / exact:.4f}" if abs(exact) > rounding else "-"
        table.add_row(name, f"{sketched:.6g}", f"{exact:.6g}", ratio)
    Console().print(table)

    result = overlap(found.W, found.theta, seed=config.sketch.seed)
    relative = found.estimate / found.estimate[0]
    exact = found.exact[: len(found.values)]
    figure = hessian_figure(found.values, relative, None, result, title, exact)
    path = context.run.figures / f"{context.name}-exact-{context.directory.path.name}.png"
    save(figure, path)
    print(f"figure {path}")


def compare(context: Context) -> Comparison:
    """The exact decomposition of a context's Hessian, beside the file of the sketched one."""
    inputs = load_inputs(context)
    model = inputs.model.double()
    parameters = select_parameters(model, context.config.hessian.param_filter)
    theta = params_to_vector(parameters)
    if len(theta) > LARGEST:
        raise ExhaustiveError(
            f"The exact Hessian of {len(theta):,} parameters does not fit; exhaustive takes at "
            f"most {LARGEST:,}. Select some by hessian.param_filter."
        )
    data = to_device(inputs.data, "cpu", torch.float64)
    H = dense_hessian(model, list(parameters), data, inputs.problem.loss_fn)
    exact, vectors = torch.linalg.eigh(H)
    order = exact.abs().argsort(descending=True)
    with context.eigh() as file:
        W = file.eigenvectors[:].double()
        values, estimate = file.eigenvalues, file.residual
    return Comparison(H, exact[order], vectors[:, order], values, W, estimate, theta)


def dense_hessian(
    model: nn.Module, names: list[str], batch: Any, loss_fn: LossFn, chunk_size: int = 64
) -> Tensor:
    """The Hessian (N, N) of a batch's loss in the named parameters, row by row."""
    theta = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes = [theta[name].numel() for name in names]
    objective = _Objective(model, loss_fn)

    def loss(vector: Tensor) -> Tensor:
        pieces = zip(names, vector.split(sizes), strict=True)
        selected = {name: piece.view(theta[name].shape) for name, piece in pieces}
        prefixed = {f"model.{name}": value for name, value in (theta | selected).items()}
        value: Tensor = functional_call(objective, prefixed, (batch,))
        return value

    point = torch.cat([theta[name].flatten() for name in names])
    with sdpa_kernel(SDPBackend.MATH):  # as in the operator
        H: Tensor = jacrev(grad(loss), chunk_size=chunk_size)(point)
    return (H + H.T) / 2


class _Objective(nn.Module):
    """A loss function as a module, so that `functional_call` can swap its model's parameters."""

    def __init__(self, model: nn.Module, loss_fn: LossFn):
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)
