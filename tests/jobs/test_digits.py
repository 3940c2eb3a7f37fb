"""The digits against their exact Hessian, from autograd on a network written out here."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from skerch.curvature import HessianOperator
from skerch.decompositions.eigh_file import EighFile
from skerch.decompositions.seigh import seigh
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.training_files import load_hessian_data, load_parameters
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs

WIDTHS = [64, 20, 20, 10]
HESSIANS = [(step, split) for step in (100, 300) for split in ("train", "test")]
OUTER, INNER = 200, 400


def loss(theta, x, y):
    """Cross-entropy of a tanh network whose parameters are read off a vector."""
    position = 0
    for index, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        W = theta[position : position + inputs * outputs].view(outputs, inputs)
        position += inputs * outputs
        x = x @ W.T + theta[position : position + outputs]
        position += outputs
        if index < len(WIDTHS) - 2:
            x = x.tanh()
    assert position == len(theta) == 1930
    return (x.logsumexp(dim=1) - x.gather(1, y[:, None])[:, 0]).mean()


@pytest.fixture(scope="module")
def exact(digits):
    """For each Hessian: itself, its eigenvalues by decreasing magnitude, and the parameters."""
    run = RunDir(digits.run_dir)
    found = {}
    for step, split in HESSIANS:
        theta = load_parameters(run, step).double()
        x, y = load_hessian_data(run, split)
        H = torch.func.hessian(loss)(theta, x.double(), y)
        values = torch.linalg.eigvalsh(H)
        found[step, split] = H, values[values.abs().argsort(descending=True)], theta
    return found


def operator(digits, step, split):
    inputs = load_inputs(Context(RunDir(digits.run_dir), digits, "seigh", step, split))
    return HessianOperator(inputs.model, [inputs.data], inputs.problem.loss_fn, strategy="batched")


def check(H, exact_values, results, top_ten, ratio):
    """The bounds that are promised for several sketches of one Hessian."""
    ranks = (20, 100, OUTER)
    errors = []
    for values, W, residual in results:
        assert ((values[:10] - exact_values[:10]) / exact_values[:10]).abs().max() < top_ten
        truth = [torch.linalg.norm(H - (W[:, :r] * values[:r]) @ W[:, :r].T) for r in ranks]
        assert truth[-1] < ratio * torch.linalg.norm(exact_values[OUTER:])
        errors.append(residual[list(ranks)] / torch.stack(truth) - 1)
    assert (torch.stack(errors).square().mean(dim=0).sqrt() < 0.05).all()


@pytest.mark.parametrize(("step", "split"), HESSIANS)
@pytest.mark.parametrize(
    ("rounds", "top_ten", "ratio"), [(3, 1e-5, 1.1), (2, 5e-4, 1.18), (1, 0.04, 1.9)]
)
def test_sketched_eigenpairs_are_as_near_as_promised(
    digits, exact, step, split, rounds, top_ten, ratio
):
    H, exact_values, _ = exact[step, split]
    op = operator(digits, step, split)
    results = []
    for seed in range(5):
        r = seigh(op, outer=OUTER, inner=INNER, rounds=rounds, seed=seed)
        results.append((r.eigenvalues, r.eigenvectors.double(), r.residual))
    check(H, exact_values, results, top_ten, ratio)


@pytest.mark.parametrize(("step", "split"), HESSIANS)
def test_the_pipelines_files_are_as_near_as_promised(digits, exact, step, split):
    H, exact_values, _ = exact[step, split]
    with EighFile(RunDir(digits.run_dir).step("seigh", step, split).eigh) as file:
        results = [(file.eigenvalues, file.eigenvectors[:].double(), file.residual)]
    check(H, exact_values, results, 5e-4, 1.18)


@pytest.mark.parametrize(("step", "split"), HESSIANS)
def test_overlap_is_its_definition(digits, exact, step, split):
    theta = exact[step, split][2]
    directory = RunDir(digits.run_dir).step("seigh", step, split)
    with EighFile(directory.eigh) as file:
        W = file.eigenvectors[:].double()
    found = json.loads(directory.overlap.read_text())["overlap"]
    order = theta.abs().argsort(descending=True, stable=True)
    for k in (1, 2, 17, 100, OUTER):
        definition = W[order[:k], :k].square().sum() / k
        assert found[k - 1] == pytest.approx(float(definition), abs=1e-6)
