"""A start: eigenvectors of another step or split are the first test vectors, whoever runs it."""

from __future__ import annotations

import shutil

import pytest
import torch

from skerch.decompositions.eigh_file import EighFile
from skerch.jobs import pipeline
from skerch.jobs.config import ConfigError, load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.pipeline.seigh import damage
from skerch.jobs.run_dir import RunDir
from skerch.jobs.stages import decompose
from skerch.measurements.manifest import manifest_path, read
from skerch.measurements.range_finder import RangeFile

CHAIN = ["sketch.start=previous", "sketch.rounds=4", "launcher.blocks_per_task=8"]
LATE = "seigh.step-000060-test"


def stages(config):
    return [task.id for task in pipeline.missing(pipeline.tasks(config))]


def started(config):
    """The folder of the step that starts with another one's eigenvectors."""
    return RunDir(config.run_dir).step("seigh", 60, "test")


@pytest.fixture(scope="module")
def whole(small_overrides, tmp_path_factory):
    """A chain of two steps without a fault."""
    config = load("digits", [f"run_dir={tmp_path_factory.mktemp('run')}", *small_overrides, *CHAIN])
    assert not complete(config)
    return config


def test_the_chain_is_in_the_graph_and_the_source_in_the_manifest(whole):
    tasks = {task.id: task for task in pipeline.tasks(whole)}
    assert tasks[f"{LATE}.rounds"].needs == ("train", "seigh.step-000020-test.decompose")
    assert tasks["seigh.step-000020-test.rounds"].needs == ("train",)
    run = RunDir(whole.run_dir)
    first = read(manifest_path(started(whole).measurements(1)))
    assert [each.columns for each in whole.sketch.each_round()] == [28, 4, 4, 4]
    assert first.provenance["identity"]["sketch"]["start"] == "previous"
    with EighFile(run.step("seigh", 20, "test").eigh) as file:
        W = file.eigenvectors[...].double()

    with RangeFile(started(whole).range(1), []) as file:
        assert file.hash == first.range_hash
        Q = file.columns(0, 28).double()
    assert torch.linalg.norm(W - Q @ (Q.T @ W)) < 1e-5
    assert torch.dist(Q.T @ Q, torch.eye(28, dtype=torch.float64)) < 1e-5
    assert read(manifest_path(run.step("seigh", 20, "test").measurements(1))).range_hash is None


def test_one_task_leaves_the_bytes_of_many(whole, small, results_of):
    apart = small(*CHAIN, "launcher.blocks_per_task=1")
    ids = stages(apart)
    assert f"{LATE}.range_finder-1" in ids
    assert "seigh.step-000020-test.range_finder-1" not in ids
    assert not complete(apart)
    assert results_of(apart.run_dir) == results_of(whole.run_dir)


@pytest.mark.parametrize("rounds", ["one task", "many"])
def test_what_is_lost_of_the_start_and_its_source_is_made_again(whole, small, results_of, rounds):
    config = small(*CHAIN, *(["launcher.blocks_per_task=1"] if rounds == "many" else []))
    shutil.copytree(whole.run_dir, config.run_dir, dirs_exist_ok=True)
    here, source = started(config), RunDir(config.run_dir).step("seigh", 20, "test")
    for lost in (
        here.range(1),
        here.measurements(2) / "blocks" / "block-000000.h5",
        here.merged,
        here.eigh,
        source.eigh,
    ):
        lost.unlink()
    assert "seigh.step-000020-test.decompose" in stages(config)
    assert not complete(config)
    assert results_of(config.run_dir) == results_of(whole.run_dir)
    assert not list(damage(here, [here.range(1)]))


def test_a_lost_start_whose_source_has_grown_is_told(whole, small, capsys):
    config = small(*CHAIN, "sketch.inner=50", "sketch.rounds=auto")
    shutil.copytree(whole.run_dir, config.run_dir, dirs_exist_ok=True)
    config = small(*CHAIN, "sketch.inner=50", "sketch.rounds=auto")
    started(config).range(1).unlink()
    assert complete(config)
    assert "was measured with another start than" in capsys.readouterr().err


def test_blocks_and_the_start_may_go_once_they_are_merged(whole, small):
    config = small(*CHAIN, "keep_blocks=false")
    assert not complete(config)
    assert not list(started(config).path.rglob("block-*.h5"))
    assert not started(config).range(1).exists()
    assert not stages(config)
    assert started(config).eigh.read_bytes() == started(whole).eigh.read_bytes()


def test_columns_need_not_be_merged(whole, small):
    config = small(*CHAIN, "consolidate=false")
    assert not complete(config)
    assert started(config).eigh.read_bytes() == started(whole).eigh.read_bytes()


def test_another_source_than_was_measured_with_is_refused(whole, small):
    config = small(*CHAIN)
    shutil.copytree(whole.run_dir, config.run_dir, dirs_exist_ok=True)
    here = started(config)
    shutil.copy(here.eigh, RunDir(config.run_dir).step("seigh", 20, "test").eigh)
    for lost in (here.range(1), here.merged, here.eigh):
        lost.unlink()
    failures = complete(config)
    assert any("of other measurements" in words for words in failures.values())


def test_a_star_begins_with_its_source(small):
    star = ["hessian.splits=[train,test]", "sketch.start={step: 60, split: test}"]
    ids = stages(small(*star))
    hessians = list(dict.fromkeys(each.split(".")[1] for each in ids[1:]))
    assert hessians[0] == "step-000060-test"
    assert sum("range_finder-1" in each for each in ids) == 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sketch.start=next"], "sketch.start is 'next'; it is previous"),
        (["sketch.start={step: 60}"], "sketch.start is .*a step and a split"),
        (["sketch.start={step: 30, split: test}"], r"sketch\.start\.step is 30, which training"),
        (["sketch.start={step: 60, split: train}"], r"sketch\.start\.split is 'train', which hes"),
        (["sketch.start=previous", "sketch.recovery=oversampled"], "for sketch.recovery=nystrom"),
        (["sketch.start=previous", "sketch.rounds=1"], "needs a second round"),
    ],
)
def test_a_start_that_cannot_be_is_refused(small, overrides, words):
    with pytest.raises(ConfigError, match=words):
        small("sketch.rounds=auto", *overrides)


def test_a_stale_start_is_told(whole, small, monkeypatch, capsys):
    config = small(*CHAIN)
    shutil.copytree(whole.run_dir, config.run_dir, dirs_exist_ok=True)
    with EighFile(started(whole).eigh) as file:
        explained = float(file._file.attrs["health_start"])
    assert 0.5 < explained < 1
    started(config).eigh.unlink()
    monkeypatch.setattr(decompose, "STALE", 1.0)
    assert not complete(config)
    told = capsys.readouterr().out
    assert f"the start is stale. It holds {explained:.1%} of the Hessian's products" in told
