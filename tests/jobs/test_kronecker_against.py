"""Kronecker-factored approximations on the eigenspaces that other methods of the run have found."""

from __future__ import annotations

import shutil

import pytest
import torch

import skerch as package
from skerch.jobs.config import ConfigError, load
from skerch.jobs.launchers.complete import complete

AGAINST = ["method=ekfac", "kronecker.against=seigh"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, reference, small_overrides):
    """The small run with a SkEIGH, and EK-FAC against it."""
    directory = tmp_path_factory.mktemp("against") / "run"
    shutil.copytree(reference.run_dir, directory)
    assert not complete(load("digits", [*small_overrides, *AGAINST, f"run_dir={directory}"]))
    return directory


def test_the_overlap_is_that_of_the_files(run, skerch):
    pairs, found = (package.load(run, name)[60, "test"] for name in ("seigh", "ekfac"))
    results, W = found.results, torch.as_tensor(pairs.eigenvectors[:]).double()
    K = W.shape[1]
    _, V = found.approximation().top(K)
    for k in (1, K // 2, K):
        expected = float((W[:, :k].T @ V[:, :k]).square().sum()) / k
        assert results.overlap[k - 1] == pytest.approx(expected, rel=1e-6)
        assert results.captured(k).value == results.overlap[k - 1] > 10 * results.baseline[k - 1]
    assert 1 <= results.last_known < K
    assert results.captured(results.last_known).error < 1
    assert results.eigenvalues == pytest.approx(pairs.results.eigenvalues)
    residual, off = results.residual
    assert 0 < off < residual < 1
    assert found.context.run.figure("ekfac", 60, "test").exists()

    _, out, _ = skerch("results", run, "--name", "ekfac")
    assert "of seigh" in out
    assert str(results.captured(results.last_known)) in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["kronecker.against=other"], "kronecker.against=other: "),
        (["kronecker.against=x"], "the method itself"),
        (["kronecker.against=../x"], "it names a folder"),
        (["kronecker.against=seigh", "hessian.datapoints=90"], "another matrix"),
        (["kronecker.against=seigh", "training.record_steps=[20,40]"], "step 40, test"),
    ],
)
def test_pairs_that_are_not_there_or_of_another_loss_are_refused(
    run, small_overrides, options, words
):
    asked = [*small_overrides, "method=ekfac", "name=x", f"run_dir={run}", *options]
    with pytest.raises(ConfigError) as refusal:
        complete(load("digits", asked))
    assert words in str(refusal.value)
