"""Exact Hessians of mnist_mini on real digits, to measure sketches against.

`spectra/mnist_mini-<step>.npz` keeps what takes long or differs from machine to machine: the
`parameters` (N,) after that many steps of the training of config/experiment/mnist_mini.yaml, and
the `eigenvalues` (N,) of their Hessian on 500 test digits, in float64, by decreasing magnitude.
The Hessian itself is made anew from the parameters and the digits.

    python -m benchmarks.exact PATH      # train, decompose and write them anew: 15 minutes

PATH holds MNIST/raw.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from skerch.curvature.batching import to_device
from skerch.curvature.dense import dense_hessian
from skerch.curvature.parameters import load_vector
from skerch.jobs.config import Config, load
from skerch.jobs.problems import Problem, build_model, load_data, load_problem
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.training_files import load_parameters
from skerch.jobs.training.datapoints import hessian_batch
from skerch.jobs.training.session import train

SPECTRA = Path(__file__).parent / "spectra"
CACHE = Path.home() / ".cache" / "skerch"
STEPS = (0, 200, 1000)
TOP = 355  # eigenvectors that are cached


@dataclass(frozen=True)
class Exact:
    """A symmetric matrix and its eigendecomposition, by decreasing magnitude."""

    H: Tensor  # (N, N), float64
    eigenvalues: Tensor  # (N,)
    vectors: Tensor | None  # the first of the eigenvectors (N, n ≥ k), None if not needed


def eigh(H: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues by decreasing magnitude, and their eigenvectors."""
    values, vectors = torch.linalg.eigh(H)
    order = values.abs().argsort(descending=True)
    return values[order], vectors[:, order]


def mnist_mini(root: Path | str, *overrides: str) -> Config:
    """The experiment at the three steps, on the test split."""
    fixed = [f"training.record_steps={list(STEPS)}", "hessian.splits=[test]", "launcher.threads=1"]
    return load("mnist_mini", [f"problem.root={root}", *fixed, *overrides])


def kept(step: int) -> dict[str, Tensor]:
    """The kept parameters and eigenvalues of a step."""
    return {name: torch.from_numpy(array) for name, array in np.load(_path(step)).items()}


def network(problem: Problem, parameters: Tensor) -> nn.Module:
    """The network with these parameters (N,)."""
    model = build_model(problem).eval()
    load_vector(parameters, dict(model.named_parameters()))
    return model


def hessian(config: Config, parameters: Tensor) -> Tensor:
    """The Hessian (N, N) of the test datapoints at these parameters, in float64."""
    problem = load_problem(config.problem)
    batch = hessian_batch(load_data(problem, "test"), "test", config.hessian)
    data = to_device(batch, "cpu", torch.float64)
    model = network(problem, parameters).double()
    names = [name for name, _ in model.named_parameters()]
    return dense_hessian(model, names, data, problem.loss_fn)


def load_exact(root: Path, step: int, cache: Path | None = None) -> Exact:
    """The exact Hessian of a step; with eigenvectors if there is a folder to cache them in."""
    found = kept(step)
    H, values = hessian(mnist_mini(root), found["parameters"]), found["eigenvalues"]
    return Exact(H, values, None if cache is None else _top_vectors(H, values, cache, step))


def _top_vectors(H: Tensor, kept_values: Tensor, cache: Path, step: int) -> Tensor:
    """The eigenvectors of the 355 largest eigenvalues, which take minutes the first time."""
    path = cache / f"{_path(step).stem}-vectors.npy"
    if not path.exists():
        values, vectors = eigh(H)
        error = float((values - kept_values).abs().max() / values[0].abs())
        assert error < 1e-9, f"the kept eigenvalues are off by {error:.1e} of the largest"
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, vectors[:, :TOP].numpy())
    return torch.from_numpy(np.load(path))


def _path(step: int) -> Path:
    return SPECTRA / f"mnist_mini-{step:06d}.npz"


def main() -> None:
    """The command."""
    with tempfile.TemporaryDirectory() as folder:
        config = mnist_mini(sys.argv[1], f"run_dir={folder}")
        run = RunDir(config.run_dir)
        run.training.mkdir(parents=True)
        train(run, config)
        for step in STEPS:
            parameters = load_parameters(run, step)
            values, _ = eigh(hessian(config, parameters))
            np.savez(_path(step), parameters=parameters.numpy(), eigenvalues=values.numpy())
            print(f"{_path(step)}: λ = {values[:3].tolist()} …", file=sys.stderr)


if __name__ == "__main__":
    main()
