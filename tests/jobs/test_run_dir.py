"""The run directory: its paths."""

from dataclasses import replace
from pathlib import Path

import pytest

from skerch.jobs import config as configs
from skerch.jobs.run_dir import RunDir, command, method_name


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
        step.range(2): "/r/seigh/step-000300-test/measurements/round-2/range.h5",
        step.merged: "/r/seigh/step-000300-test/merged.h5",
        step.eigh: "/r/seigh/step-000300-test/eigh.h5",
        step.overlap: "/r/seigh/step-000300-test/overlap.json",
        run.figure("scree", 300, "test"): "/r/figures/scree-step-000300-test.png",
        run.task_log("measure/300 test:3"): "/r/logs/measure-300-test-3.log",
    }
    assert {str(path): expected for path, expected in paths.items()} == {
        expected: expected for expected in paths.values()
    }


def test_a_command_names_a_run_from_where_it_stands_and_in_full_within_it(tmp_path, monkeypatch):
    for place, said in ((tmp_path, "run"), (tmp_path / "run", str(tmp_path / "run"))):
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        assert command("status", tmp_path / "run") == f"python -m skerch status {said}"


def test_a_method_is_called_after_its_curvature_or_as_the_user_says(load):
    assert method_name(load()) == "seigh"
    config = load()
    config.hessian.curvature = "ggn"
    assert method_name(config) == "seigh-ggn"
    assert method_name(replace(config, name="mine")) == "mine"
