"""Masks by gradient, by layer and from files, of a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skerch.analysis.results import HessianResults
from skerch.curvature.parameters import select_parameters
from skerch.hdf5 import open_hdf5
from skerch.jobs.config import ConfigError
from skerch.jobs.launchers.complete import complete
from skerch.jobs.run_dir import RunDir, results_file
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs
from skerch.jobs.stages.masks import read


def analysis(config):
    """The results at step 60, and the eigenvectors."""
    directory = RunDir(config.run_dir).step("seigh", 60, "test")
    with open_hdf5(directory.eigh) as file:
        return results_file.read(directory.overlap, HessianResults), file["eigenvectors"][:]


def test_the_gradients_mask_is_that_of_the_mean_loss(reference):
    results, W = analysis(reference)
    assert results.other_masks == ["gradient", "layers"]
    assert results.other_chance == [[k / len(W) for k in results.grid]] * 2
    inputs = load_inputs(Context(RunDir(reference.run_dir), reference, "seigh", 60, "test"))
    inputs.problem.loss_fn(inputs.model, inputs.data).backward()
    gradient = np.concatenate([p.grad.numpy().ravel() for p in inputs.model.parameters()])
    largest = np.argsort(-np.abs(gradient), kind="stable")
    expected = [np.linalg.norm(W[largest[:k], :k]) ** 2 / k for k in results.grid]
    np.testing.assert_allclose(results.others[0], expected, rtol=0, atol=1e-6)
    best = [np.sort((W[:, :k] ** 2).sum(1))[-k:].sum() / k for k in results.grid]
    np.testing.assert_allclose(results.best, best, rtol=1e-5)


def test_given_masks_are_added_to_a_run_that_is_done(small):
    assert not complete(small())
    before, W = analysis(small())
    N = len(W)
    np.save("half.npy", np.arange(N // 2))
    config = small("masks.half=half.npy")
    assert not complete(config)
    results, _ = analysis(config)
    assert results.other_masks == ["gradient", "layers", "half"]
    assert results.other_sizes == [None, None, N // 2]
    assert results.other_chance[2] == [pytest.approx(N // 2 / N)] * len(results.grid)
    expected = [np.linalg.norm(W[: N // 2, :k]) ** 2 / k for k in results.grid]
    np.testing.assert_allclose(results.others[2], expected, rtol=0, atol=1e-6)
    assert (results.overlap, results.others[:2]) == (before.overlap, before.others)


def test_a_mask_that_a_run_had_can_be_taken_away(small, skerch):
    np.save("two.npy", np.array([3, 1]))
    config = small("masks.two=two.npy", "masks.also=two.npy")
    assert not complete(config)
    status, _, said = skerch("run", config.run_dir, "masks.two=null")
    assert (status, said) == (0, "")
    assert analysis(config)[0].other_masks == ["gradient", "layers", "also"]


def test_what_an_older_version_measured_has_no_gradient(small):
    config = small("training.record_steps=[60]")
    assert not complete(config)
    directory = RunDir(config.run_dir).step("seigh", 60, "test")
    directory.gradient.unlink()
    content = json.loads(directory.overlap.read_text())
    directory.overlap.unlink()
    assert not complete(config)
    results, _ = analysis(config)
    assert results.other_masks == ["layers"]
    assert results.others == content["others"][1:]


def test_masks_are_read_by_the_parameters_names(tmp_path):
    selected = select_parameters(torch.nn.Linear(3, 2))
    whole = {"bias": torch.tensor([0, 1]), "weight": torch.eye(2, 3), "more": torch.zeros(9)}
    save_file(whole, tmp_path / "mask.safetensors")
    assert read("masks.a", tmp_path / "mask.safetensors", selected).tolist() == [0, 4, 7]
    save_file({"mask": torch.tensor([7, 0])}, tmp_path / "one.safetensors")
    assert read("masks.a", tmp_path / "one.safetensors", selected).tolist() == [0, 7]


def test_files_that_hold_no_mask_are_refused(tmp_path, small):
    selected = select_parameters(torch.nn.Linear(3, 2))
    save_file({"weight": torch.eye(2, 3), "more": torch.zeros(9)}, tmp_path / "part.safetensors")
    np.save(tmp_path / "large.npy", np.array([3, 8]))
    (tmp_path / "text.npy").write_text("1 2 3")
    turned = {"bias": torch.ones(2), "weight": torch.eye(3, 2)}
    save_file(turned, tmp_path / "turned.safetensors")
    save_file({"bias": torch.tensor([7, 0, 1])}, tmp_path / "within.safetensors")
    for name, words in {
        "part.safetensors": "it lacks bias",
        "turned.safetensors": r"weight has the shape \(3, 2\), and the parameter \(2, 3\)",
        "within.safetensors": r"bias has the shape \(3,\)",
        "large.npy": "from 0 to 7; these 2",
        "text.npy": "cannot be read",
    }.items():
        with pytest.raises(ConfigError, match=rf"^masks.mine: .*{words}"):
            read("masks.mine", tmp_path / name, selected)
    with pytest.raises(ConfigError, match=r"masks.mine: there is no file .*none.npy"):
        small("masks.mine=none.npy")
    (tmp_path / "a.npy").touch()
    with pytest.raises(ConfigError, match=r"masks.layers is the name"):
        small("masks.layers=a.npy")
