"""`skerch.load` against the files themselves, autograd, and the network's own state dict."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import skerch
from skerch.errors import ShapeError, SkerchError
from skerch.jobs import problems
from skerch.jobs.commands.load import Run
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.training_files import load_hessian_data, load_parameters


@pytest.fixture(scope="module")
def run(reference):
    return skerch.load(reference.run_dir)


@pytest.fixture(scope="module")
def network(reference):
    """The network at step 60, its parameters copied in by hand in the documented order."""
    model = problems.load_problem({"name": "digits_mlp"}).model()
    theta = load_parameters(RunDir(reference.run_dir), 60).numpy()
    for parameter in model.parameters():
        values, theta = np.split(theta, [parameter.numel()])
        parameter.data = torch.from_numpy(values.reshape(parameter.shape, order="C"))
    return model.eval()


def test_a_run_says_what_it_has(run, reference):
    assert (run.name, run.names) == ("seigh", ["seigh"])
    assert (run.steps, run.splits) == ([20, 60], ["test"])
    assert [(h.step, h.split) for h in run] == [(20, "test"), (60, "test")]
    assert "20 eigenpairs from 40 matvecs" in repr(run)
    assert str(Path(reference.run_dir)) in repr(run)
    assert "step 60, test split: 20 eigenpairs of N = 1,930" in repr(run[60, "test"])


def test_numbers_are_those_of_the_files(run, reference):
    h = run[60, "test"]
    folder = Path(reference.run_dir) / "seigh" / "step-000060-test"
    with h5py.File(folder / "eigh.h5") as file:
        assert h.eigenvalues.tolist() == file["eigenvalues"][()].tolist()
        assert h.residual.tolist() == file["residual"][()].tolist()
        assert list(h.trace) == file["trace"][()].tolist()
        assert list(h.norm) == file["norm"][()].tolist()
        W = file["eigenvectors"][()]
    assert h.eigenvectors.shape == W.shape == (1930, 20)
    for key in (np.s_[:, :3], np.s_[5], np.s_[-1, 2:9:3], np.s_[7, np.int64(4)], np.s_[..., -1]):
        assert h.eigenvectors[key].tolist() == W[key].tolist()
    assert h.overlap.tolist() == json.loads((folder / "overlap.json").read_text())["overlap"]
    assert run[np.int64(60), "test"].step == run[60.0, "test"].step == 60


def test_vectors_by_name_have_the_places_of_the_networks_own_parameters(run, network):
    h = run[60, "test"]
    state = network.state_dict()
    assert list(h.parameters) == list(state)
    assert all(torch.equal(h.parameters[name], state[name]) for name in state)
    x, y = load_hessian_data(h.context.run, "test")
    loss = torch.nn.functional.cross_entropy(network(x), y)
    gradient = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    w = h.eigenvector(0)
    slope = sum((g * part).sum() for g, part in zip(gradient, w.values(), strict=True))
    product = torch.autograd.grad(slope, list(network.parameters()))
    for name, Hw in zip(w, product, strict=True):
        torch.testing.assert_close(Hw, h.eigenvalues[0].float() * w[name], rtol=0.02, atol=0.02)


def test_the_operator_has_the_eigenpairs_and_keeps_to_its_residual(run):
    h = run[60, "test"]
    H = h.operator()
    W, values = h.eigenvectors[:].to(H.device), h.eigenvalues.to(H.device, H.dtype)
    errors = (H @ W - W * values).norm(dim=0)
    assert errors[0] < 0.02 * h.eigenvalues[0]
    assert errors.square().sum().sqrt() < h.residual[-1]  # as ‖(H - H_k) W‖ is less than ‖H - H_k‖


def test_only_the_parameters_that_the_hessian_is_of_have_names(run):
    biases = replace(run.config, hessian=replace(run.config.hessian, param_filter=["*.bias"]))
    parts = Run(run.directory, biases)[60, "test"].by_name(torch.arange(50))
    assert {name: part.tolist() for name, part in parts.items()} == {
        "1.bias": [*range(20)],
        "3.bias": [*range(20, 40)],
        "5.bias": [*range(40, 50)],
    }


@pytest.mark.parametrize(
    ("mistake", "error", "words"),
    [
        (lambda run: run[61, "test"], SkerchError, r"no Hessian \(61, 'test'\).*\[20, 60\]"),
        (lambda run: run[60, "train"], SkerchError, r"'train'\).*\['test'\]"),
        (lambda run: run[60], SkerchError, r"run\[step, split\]"),
        (lambda run: run[60, "test"].eigenvector(20), IndexError, "out of bounds"),
        (lambda run: run[60, "test"].eigenvectors[:, ::-1], ValueError, "step must be"),
        (lambda run: run[60, "test"].eigenvectors[:, [1, 0]], SkerchError, "by slices"),
        (lambda run: run[60, "test"].by_name(torch.ones(3)), ShapeError, r"\(1930,\), not \(3,\)"),
        (lambda run: skerch.load(run.directory.path, "seihg"), SkerchError, "there is seigh"),
        (lambda run: skerch.load("nowhere"), SkerchError, "no run directory"),
    ],
)
def test_mistakes_are_not_taken_for_damage(run, mistake, error, words):
    with pytest.raises(error, match=words):
        mistake(run)


def test_a_run_that_is_not_done_has_what_is_there(small, reference):
    config = small()
    shutil.copytree(reference.run_dir, config.run_dir)
    directory = RunDir(config.run_dir).step("seigh", 60, "test")
    h = skerch.load(config.run_dir)[60, "test"]
    directory.overlap.unlink()
    assert len(h.eigenvalues) == 20
    with pytest.raises(SkerchError, match=r"overlap\.json is missing; see: .* status run"):
        _ = h.overlap
    directory.eigh.unlink()
    assert "not decomposed yet" in repr(h)
    with pytest.raises(SkerchError, match=r"eigh\.h5 is missing; see: .* status run"):
        _ = h.eigenvalues
