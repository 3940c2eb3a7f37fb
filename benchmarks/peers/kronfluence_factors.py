"""Kronecker factors by kronfluence: of empirical gradients, and its eigenvalue corrections."""

from __future__ import annotations

from typing import Any

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments
from kronfluence.task import Task
from products import seconds, serve
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

analyzers: list[tuple[Analyzer, TensorDataset]] = []


class Classification(Task):
    """The sum of cross-entropies."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        x, y = batch
        logits = model(x)
        if sample:
            with torch.no_grad():
                y = torch.multinomial(logits.softmax(-1), 1).flatten()
        return cross_entropy(logits, y, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)


def load(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Make the analyzer that is measured from now on; it writes below the working folder."""
    task = Classification()
    model = prepare_model(network.eval(), task)
    analyzer = Analyzer("analysis", model, task, cpu=True, disable_tqdm=True, output_dir=".")
    analyzers[:] = [(analyzer, TensorDataset(*batch))]


def factors(batch_size: int) -> float:
    """The seconds for the covariance factors with sampled labels."""
    ((analyzer, data),) = analyzers
    arguments = FactorArguments(strategy="ekfac")

    def work() -> None:
        analyzer.fit_covariance_matrices(
            "factors",
            data,
            per_device_batch_size=batch_size,
            factor_args=arguments,
            overwrite_output_dir=True,
        )

    return seconds(work)


def corrections(batch_size: int) -> float:
    """The seconds for its lambda matrices, once the factors and their eigenvectors are there."""
    ((analyzer, data),) = analyzers
    arguments = FactorArguments(strategy="ekfac")
    analyzer.perform_eigendecomposition("factors", arguments, overwrite_output_dir=True)

    def work() -> None:
        analyzer.fit_lambda_matrices(
            "factors",
            data,
            per_device_batch_size=batch_size,
            factor_args=arguments,
            overwrite_output_dir=True,
        )

    return seconds(work)


if __name__ == "__main__":
    serve(load, factors=factors, corrections=corrections)
