"""Many small rounds: in one task or in many, whatever is lost, the bytes are the same."""

from __future__ import annotations

import shutil

import pytest

from skerch.jobs import pipeline
from skerch.jobs.config import ConfigError, load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import bind

MANY = ["sketch.rounds=8", "training.record_steps=[60]", "launcher.blocks_per_task=8"]


def stages(config):
    return [task.stage for task in pipeline.missing(pipeline.tasks(config))]


@pytest.fixture(scope="module")
def whole(small_overrides, tmp_path_factory):
    """A run of eight rounds without a fault."""
    config = load("digits", [f"run_dir={tmp_path_factory.mktemp('run')}", *small_overrides, *MANY])
    assert stages(config) == ["train", "rounds", "merge", "decompose", "analyze"]
    assert not complete(config)
    return config


def test_one_task_leaves_the_bytes_of_many(whole, small, results_of):
    apart = small(*MANY, "launcher.blocks_per_task=1")
    assert stages(apart).count("range_finder") == 7
    assert not complete(apart)
    assert results_of(apart.run_dir) == results_of(whole.run_dir)


def test_what_is_lost_of_some_rounds_is_measured_again(whole, small, results_of):
    config = small(*MANY)
    assert not complete(config)
    directory = RunDir(config.run_dir).step("seigh", 60, "test")
    assert [n for n in range(2, 9) if directory.range(n).exists()] == [8]
    kept = (directory.measurements(7) / "blocks" / "block-000000.h5").stat()
    for lost in (
        directory.measurements(1) / "blocks" / "block-000002.h5",
        directory.measurements(5) / "blocks" / "block-000000.h5",
        directory.measurements(6) / "manifest.json",
        directory.range(8),
        directory.merged,
        directory.eigh,
    ):
        lost.unlink()
    assert stages(config) == ["rounds", "merge", "decompose"]
    assert not complete(config)
    assert results_of(config.run_dir) == results_of(whole.run_dir)
    again = (directory.measurements(7) / "blocks" / "block-000000.h5").stat()
    assert again.st_mtime_ns == kept.st_mtime_ns


@pytest.mark.parametrize("lost", [1, 4])
def test_a_whole_round_may_be_lost(whole, small, results_of, lost):
    config = small(*MANY)
    shutil.copytree(whole.run_dir, config.run_dir, dirs_exist_ok=True)
    directory = RunDir(config.run_dir).step("seigh", 60, "test")
    shutil.rmtree(directory.measurements(lost))
    for later in (directory.merged, directory.eigh):
        later.unlink()
    assert not complete(config)
    assert results_of(config.run_dir) == results_of(whole.run_dir)
    assert [n for n in range(2, 9) if directory.range(n).exists()] == [8]


def test_a_range_that_a_kill_left_behind_goes(whole, small):
    config = small(*MANY)
    shutil.copytree(whole.run_dir, config.run_dir, dirs_exist_ok=True)
    directory = RunDir(config.run_dir).step("seigh", 60, "test")
    shutil.copy(directory.range(8), directory.range(7))  # found 8, killed before 7 was deleted
    for later in (directory.merged, directory.eigh):
        later.unlink()
    assert not complete(config)
    assert [n for n in range(2, 9) if directory.range(n).exists()] == [8]


def test_a_damaged_round_is_named_and_made_again(whole, small, results_of):
    config = small(*MANY)
    shutil.copytree(whole.run_dir, config.run_dir, dirs_exist_ok=True)
    directory = RunDir(config.run_dir).step("seigh", 60, "test")
    block = directory.measurements(3) / "blocks" / "block-000000.h5"
    content = bytearray(block.read_bytes())
    content[len(content) // 2] ^= 255
    block.write_bytes(content)
    for later in (directory.range(8), directory.merged, directory.eigh):
        later.unlink()
    assert str(block) in complete(config)["seigh.step-000060-test.rounds"]
    block.unlink()
    assert not complete(config)
    assert results_of(config.run_dir) == results_of(whole.run_dir)


def test_blocks_may_go_once_they_are_merged(whole, small):
    config = small(*MANY, "keep_blocks=false")
    assert not complete(config)
    directory = RunDir(config.run_dir).step("seigh", 60, "test")
    assert not list(directory.path.rglob("block-*.h5"))
    assert not stages(config)
    there = RunDir(whole.run_dir).step("seigh", 60, "test")
    assert directory.eigh.read_bytes() == there.eigh.read_bytes()


def test_auto_is_many_rounds_here_and_two_where_each_waits(small, tmp_path):
    few = [f"run_dir={tmp_path / 'queued'}", "sketch.rounds=auto"]
    assert load("digits", few).sketch.rounds == 25  # of 8 of the 200 products
    assert load("digits", few, queued=True).sketch.rounds == 2
    assert load("digits", [*few, "launcher.workers=4"]).sketch.rounds == 2
    assert load("digits", [*few, "sketch.recovery=oversampled"]).sketch.rounds == 1
    config = load("digits", few, queued=True)
    bind(RunDir(config.run_dir), config)
    assert load("digits", few).sketch.rounds == 2  # as it was begun
    assert load("digits", [*few, "sketch.outer=90"]).sketch.inner == 200  # likewise
    grown = load("digits", [*few, "sketch.inner=350"], queued=True).sketch
    assert [each.columns for each in grown.each_round()] == [100, 100, 100, 50]
    started = load("digits", [*few, "name=started", "sketch.start=previous"])
    assert [each.columns for each in started.sketch.each_round()] == [108, 92]
    bind(RunDir(config.run_dir), started)
    grown = load("digits", [*few, "name=started", "sketch.start=previous", "sketch.inner=250"])
    assert [each.columns for each in grown.sketch.each_round()] == [108, 92, 50]
    bind(RunDir(config.run_dir), grown)
    again = load(config.run_dir, ["sketch.inner=300"])  # by the directory, whose rounds are a list
    assert [each.columns for each in again.sketch.each_round()] == [108, 92, 50, 50]


def test_rounds_may_be_a_list_of_their_products():
    config = load("digits", ["sketch.rounds=[100,50,25]"])
    assert config.sketch.inner == 175
    assert [each.columns for each in config.sketch.each_round()] == [100, 50, 25]
    for wrong in ("0", "[]", "many", "2.5", "[3,x]", "true"):
        with pytest.raises(ConfigError, match=r"sketch\.rounds is .*auto, a number from 1 on"):
            load("digits", [f"sketch.rounds={wrong}"])
    for wrong in (["sketch.rounds=[50,100]"], ["sketch.rounds=[99,99]", "sketch.inner=150"]):
        with pytest.raises(ConfigError, match=r"sketch: rounds=.* add up to inner="):
            load("digits", wrong)
