"""What a run's Hessians have in common is kept, and is of the eigenpairs that are there."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from skerch.jobs.commands import stabilisation as command
from skerch.jobs.commands.stabilisation import stabilisation
from skerch.jobs.launchers.complete import complete
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.training_files import load_parameters


@pytest.fixture
def config(small):
    config = small("hessian.splits=[train,test]", "training.record_steps=[20,40,60]")
    assert not complete(config)
    return config


def test_a_run_is_compared_with_itself_over_steps_and_splits(config):
    run = RunDir(config.run_dir)
    found = stabilisation(run, config)
    assert found.hessians == [(s, split) for s in (20, 40, 60) for split in ("train", "test")]
    assert (found.steps, found.ks, found.pairs) == ([20, 40, 60], [5, 10, 20], 20)
    Ws = []
    for hessian in found.hessians:
        with h5py.File(run.step("seigh", *hessian).eigh) as file:
            Ws.append(file["eigenvectors"][:].astype(float))
    for place, k in enumerate(found.ks):
        expected = [[np.linalg.norm(A[:, :k].T @ B[:, :k]) ** 2 / k for B in Ws] for A in Ws]
        np.testing.assert_allclose(found.eigenspaces[place], expected, rtol=0, atol=1e-5)
        sets = [
            set(np.argsort(-np.abs(load_parameters(run, step).numpy()), kind="stable")[:k])
            for step in found.steps
        ]
        assert found.masks[place] == [[len(a & b) / len(a | b) for b in sets] for a in sets]
    assert found.chance == [k / len(Ws[0]) for k in found.ks]
    first = np.array(found.eigenspaces[0])
    assert first[0, 1] > first[0, 5] > found.chance[0]  # of one step, and of two far ones
    known = [error for error in np.ravel(found.eigenspace_errors) if error is not None]
    assert known == [0.0] * 18  # a space with itself has none, and no gap is resolved at these k
    (first,) = stabilisation(run, config, pairs=1).eigenspace_errors
    assert all(0 < first[a][b] <= 1 for a in range(6) for b in range(a))


def test_it_is_kept_until_eigenpairs_are_others(config, monkeypatch):
    run = RunDir(config.run_dir)
    last = run.step("seigh", 60, "test").eigh
    hidden = last.rename(last.with_name("hidden"))
    partial = stabilisation(run, config)
    assert len(partial.hessians) == 5  # what is missing is left out
    hidden.rename(last)
    found = stabilisation(run, config)
    assert len(found.hessians) == 6

    calls, compare = [], command._compare
    monkeypatch.setattr(command, "_compare", lambda *args: calls.append(1) or compare(*args))
    assert stabilisation(run, config) == found
    assert not calls
    run.stabilisation("seigh").write_text("{}")
    assert stabilisation(run, config) == found
    assert len(calls) == 1
    assert stabilisation(run, config, pairs=8).ks == [2, 8]
    monkeypatch.setattr(command, "LARGE", 100)
    monkeypatch.setattr(command, "MANY", 4)
    large = stabilisation(run, config)
    assert (large.ks, large.pairs) == ([1, 4], 20)
    assert len(calls) == 3


def test_a_run_without_eigenpairs_has_none(small):
    config = small()
    assert stabilisation(RunDir(config.run_dir), config) is None


def test_a_run_that_cannot_be_written_to_is_compared_all_the_same(config):
    run = RunDir(config.run_dir)
    path = run.stabilisation("seigh")
    path.unlink(missing_ok=True)
    path.mkdir()  # in the way, which refuses root, too
    assert len(stabilisation(run, config).hessians) == 6
    assert path.is_dir()
