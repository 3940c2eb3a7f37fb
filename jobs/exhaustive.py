"""Sketched against exact: the whole Hessian by automatic differentiation, for small networks.

The exact Hessian is computed in float64 by `torch.func`, a path that shares nothing with the
operator that was sketched.
"""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from skerch.analysis.figures import hessian_figure, save
from skerch.analysis.overlap import overlap
from skerch.curvature.batching import to_device
from skerch.curvature.losses import LossFn
from skerch.curvature.parameters import params_to_vector, select_parameters
from skerch.decompositions.eigh_file import EighFile
from skerch.errors import SkerchError
from skerch.jobs.config import Config, ConfigError
from skerch.jobs.operators import load_inputs
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.stage import Context

LARGEST = 20_000  # parameters: their Hessian takes 3.2 GB, and its eigenvectors as much again


class ExhaustiveError(SkerchError):
    """A network that is too large for its exact Hessian."""


def print_comparison(config: Config, step: int | None, split: str | None) -> None:
    """Compare one Hessian's sketched eigenpairs, residual and overlap with the exact ones."""
    steps, splits = config.training.record_steps or [], config.hessian.splits
    step, split = steps[-1] if step is None else step, splits[-1] if split is None else split
    if step not in steps or split not in splits:
        raise ConfigError(
            f"There is no step {step} of split {split}; recorded are {steps} of {splits}."
        )
    context = Context(RunDir(config.run_dir), config, method_name(config), step, split)
    inputs = load_inputs(context)
    model = inputs.model.double()
    parameters = select_parameters(model, config.hessian.param_filter)
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
    exact, vectors = exact[order], vectors[:, order]
    with EighFile(context.directory.eigh) as file:
        values, estimate = file.eigenvalues, file.residual
        W = file.eigenvectors[:].double()
    k = len(values)
    true = torch.linalg.norm(H - (W * values) @ W.T)
    best = torch.linalg.norm(exact[k:])
    norm = torch.linalg.norm(exact)
    sketched, whole = overlap(W, theta), overlap(vectors[:, :k], theta)

    table = Table(title=f"step {step}, {split} split: {k} of {len(theta):,} eigenpairs")
    for heading in ("", "sketched", "exact", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")

    def row(name: str, a: Any, b: Any) -> None:
        table.add_row(name, f"{float(a):.6g}", f"{float(b):.6g}", f"{float(a / b):.4f}")

    for index in range(min(10, k)):
        row(f"eigenvalue {index + 1}", values[index], exact[index])
    row("‖H‖_F (estimated)", estimate[0], norm)
    row(f"residual at rank {k}, over the best", true, best)
    row(f"residual at rank {k}, estimated", estimate[-1], true)
    captured = torch.linalg.norm(vectors[:, : k // 2].T @ W) ** 2 / max(k // 2, 1)
    row(f"top {k // 2} eigenspace captured", captured, torch.ones(()))
    row(f"overlap at k = {k}", sketched.overlap[-1], whole.overlap[-1])
    Console().print(table)

    path = context.run.figures / f"{context.name}-exact-{context.directory.path.name}.png"
    figure = hessian_figure(
        values, estimate / norm, None, sketched, f"step {step}, {split} split", exact[:k]
    )
    save(figure, path)
    print(f"figure {path}")


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
