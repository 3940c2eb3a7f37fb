"""What a run directory is bound to."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from skerch.jobs import config as configs
from skerch.jobs.config import ConfigError
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import RunDirError, bind
from skerch.jobs.run_dir.training_files import column, write_parameters


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a minimal experiment with overrides, run_dir in a temporary folder."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text("problem: {name: digits_mlp}\nrun_dir: run\n")
    return lambda *overrides: configs.load("small.yaml", overrides)


def test_another_sketch_needs_another_name_only(load):
    config = load()
    run = RunDir(config.run_dir)
    bind(run, config)
    bind(run, load("sketch.seed=50"))
    bind(run, config)
    run.step("seigh", 0, "test").measurements(1).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"sketch\.seed: 12345 -> 50") as caught:
        bind(run, load("sketch.seed=50", "sketch.inner=200"))
    assert "another name" in str(caught.value)
    assert "sketch.inner" not in str(caught.value)
    bind(run, load("sketch.seed=50", "name=narrow"))
    assert configs.load_resolved(run.hessian_config("narrow")).sketch.seed == 50
    assert configs.load_resolved(run.hessian_config("seigh")) == config


def test_another_method_needs_another_name(load):
    config = load("name=mine")
    run = RunDir(config.run_dir)
    bind(run, config)
    other = replace(config, method="lanczos")
    run.step("mine", 0, "test").measurements(1).mkdir(parents=True)
    with pytest.raises(RunDirError, match=r"mine has results of method seigh.*name=lanczos-2"):
        bind(run, other)
    assert configs.load_resolved(run.hessian_config("mine")) == config


def test_another_training_needs_another_run_dir(load):
    config = load()
    run = RunDir(config.run_dir)
    bind(run, load("training.lr=0.2"))
    bind(run, config)
    network = torch.nn.Linear(1, 1)
    identity = configs.identity(config, "training")
    write_parameters(run.parameters, network, {0: column(network)}, identity, {})
    with pytest.raises(ConfigError, match=r"training\.lr: 0\.1 -> 0\.2") as caught:
        bind(run, load("training.lr=0.2", "name=other"))
    assert "another name" not in str(caught.value)
    assert configs.load_resolved(run.config) == config
    assert configs.load_resolved(run.training_config) == config


def test_how_numbers_are_computed_may_change(load):
    run = RunDir(load().run_dir)
    bind(run, load())
    changed = load("launcher.workers=3", "problem.root=data")
    bind(run, changed)
    for path in (run.config, run.training_config, run.hessian_config("seigh")):
        assert configs.load_resolved(path) == changed


def test_a_damaged_binding_is_refused_by_name(load):
    run = RunDir(load().run_dir)
    bind(run, load())
    run.step("seigh", 0, "test").measurements(1).mkdir(parents=True)
    path = run.hessian_config("seigh")
    path.write_text(path.read_text().replace("outer: 100", "outer: 101"))
    with pytest.raises(ConfigError, match=r"seigh/hessian_config\.yaml"):
        bind(run, load())


def test_a_directory_that_cannot_be_made_is_one_sentence(load, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunDirError, match=r"run_dir .*/run cannot be used: .*(exists|directory)"):
        bind(RunDir(load().run_dir), load())
