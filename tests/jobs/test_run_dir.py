"""The run directory: its paths, and what it is bound to."""

from dataclasses import replace
from pathlib import Path

import pytest

from skerch.jobs import config as configs
from skerch.jobs.config import ConfigError
from skerch.jobs.run_dir import RunDir, RunDirError, method_name


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a minimal experiment with overrides, run_dir in a temporary folder."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text("problem: {name: digits_mlp}\nrun_dir: run\n")
    return lambda *overrides: configs.load("small.yaml", overrides)


def test_paths_are_those_of_the_design():
    run = RunDir(Path("/r"))
    step = run.step("seigh", 300, "test")
    paths = {
        run.config: "/r/config.yaml",
        run.parameters: "/r/training/parameters.h5",
        run.hessian_data: "/r/training/hessian_data.pt",
        run.log: "/r/training/log.jsonl",
        run.checkpoint: "/r/training/checkpoint.pt",
        run.hessian_config("kfac"): "/r/kfac/hessian_config.yaml",
        step.measurements(1): "/r/seigh/step-000300-test/measurements/round-1",
        step.range: "/r/seigh/step-000300-test/measurements/round-2/range.h5",
        step.merged: "/r/seigh/step-000300-test/merged.h5",
        step.eigh: "/r/seigh/step-000300-test/eigh.h5",
        step.overlap: "/r/seigh/step-000300-test/overlap.json",
        run.figure("scree", 300, "test"): "/r/figures/scree-step-000300-test.png",
        run.report: "/r/report.html",
        run.jobs: "/r/slurm/jobs.jsonl",
        run.task_log("measure/300 test:3"): "/r/logs/measure-300-test-3.log",
    }
    assert {str(path): expected for path, expected in paths.items()} == {
        expected: expected for expected in paths.values()
    }


def test_a_method_is_called_after_its_curvature_or_as_the_user_says(load):
    assert method_name(load()) == "seigh"
    config = load()
    config.hessian.curvature = "ggn"
    assert method_name(config) == "seigh-ggn"
    assert method_name(replace(config, name="mine")) == "mine"


def test_another_sketch_needs_another_name_only(load):
    config = load()
    run = RunDir(config.run_dir)
    run.bind(config)
    run.bind(load("sketch.outer=50"))
    run.bind(config)
    run.step("seigh", 0, "test").measurements(1).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"sketch\.outer: 100 -> 50") as caught:
        run.bind(load("sketch.outer=50", "sketch.inner=200"))
    assert "another name" in str(caught.value)
    assert "sketch.inner" not in str(caught.value)
    run.bind(load("sketch.outer=50", "name=narrow"))
    assert configs.load_resolved(run.hessian_config("narrow")).sketch.outer == 50
    assert configs.load_resolved(run.hessian_config("seigh")) == config


def test_another_training_needs_another_run_dir(load):
    config = load()
    run = RunDir(config.run_dir)
    run.bind(load("training.lr=0.2"))
    run.bind(config)
    run.parameters.touch()
    with pytest.raises(ConfigError, match=r"training\.lr: 0\.1 -> 0\.2") as caught:
        run.bind(load("training.lr=0.2", "name=other"))
    assert "another name" not in str(caught.value)
    assert configs.load_resolved(run.config) == config
    assert configs.load_resolved(run.training_config) == config


def test_how_numbers_are_computed_may_change(load):
    run = RunDir(load().run_dir)
    run.bind(load())
    changed = load("launcher.workers=3", "problem.root=data")
    run.bind(changed)
    for path in (run.config, run.training_config, run.hessian_config("seigh")):
        assert configs.load_resolved(path) == changed


def test_a_damaged_binding_is_refused_by_name(load):
    run = RunDir(load().run_dir)
    run.bind(load())
    run.step("seigh", 0, "test").measurements(1).mkdir(parents=True)
    path = run.hessian_config("seigh")
    path.write_text(path.read_text().replace("outer: 100", "outer: 101"))
    with pytest.raises(ConfigError, match=r"seigh/hessian_config\.yaml"):
        run.bind(load())


def test_a_directory_that_cannot_be_made_is_one_sentence(load, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunDirError, match=r"run_dir .*/run cannot be used: .*(exists|directory)"):
        RunDir(load().run_dir).bind(load())
