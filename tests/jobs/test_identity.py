"""Each key of the experiment file, changed on a run directory that has results.

What gives the numbers their value is refused with the difference; what makes the run grow, or says
only how they are computed, or where they lie, is taken, and no result is touched.
"""

import re
import shutil
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from skerch.jobs import launchers, pipeline
from skerch.jobs.config import ConfigError, difference, identity, load, load_resolved, validation
from skerch.jobs.config.methods import METHODS
from skerch.jobs.config.schema import Config
from skerch.jobs.problems import load_problem
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import bind
from skerch.jobs.run_dir.training_files import RecordedError, load_parameters
from skerch.jobs.training.session import train

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"

TRAINING = {  # bound to the training: another run_dir
    "problem": "problem.name=mnist_mini",
    "training.optimizer": "Adam",
    "training.lr": "0.2",
    "training.batch_size": "50",
    "training.seed": "1",
    "training.optimizer_options": "{momentum: 0.9}",
    "training.checkpoints": "net_*.pt",
    "hessian.datapoints": "90",
    "hessian.subset": "first",
}
GROWS = {  # of what there are to be results: what is there stays
    "training.max_steps": "61",
    "training.record_steps": "[20,40]",
    "training.eval_samples": "10",
    "hessian.splits": "[train,test]",
    "sketch.rounds": "sketch={rounds: 3, inner: 60}",
    "sketch.outer": "21",
    "sketch.inner": "41",
    "sketch.target": "sketch={target: {residual: 1.05}, inner: 120, rounds: auto}",
    "masks": "masks.mine=mine.npy",
}
METHOD = {  # bound to the method's results: another name or run_dir
    "hessian.curvature": "ggn",
    "hessian.batch_size": "50",
    "hessian.mode": "train",
    "hessian.param_filter": "'*.weight'",
    "hessian.dtype": "float64",
    "hessian.strategy": "loop",
    "hessian.chunk_size": "4",
    "hessian.memory_format": "channels_last",
    "sketch.kind": "gaussian",
    "sketch.recovery": "sketch={recovery: oversampled, rounds: 1}",
    "sketch.start": "previous",
    "sketch.probes": "31",
    "sketch.block_size": "16",
    "sketch.seed": "1",
}
TAKEN = {  # how the numbers are computed, and where things lie
    "problem.root": "data",
    "problem.download": "true",
    "problem_path": "elsewhere",
    "launcher.name": "other",
    "launcher.workers": "2",
    "launcher.threads": "2",
    "launcher.device": "cpu",
    "launcher.blocks_per_task": "3",
    "launcher.fuse": "false",
    "launcher.heals": "0",
    "launcher.keep_products": "false",
    "cluster": "gpu",
    "resources": "resources.measure.time=60min",
    "keep_blocks": "false",
    "consolidate": "false",
}
ELSEWHERE = {"method": "other", "name": "other", "run_dir": "other"}  # beside what is there
OTHERS = {s for method in METHODS.values() for s in method.sections} - {"hessian", "sketch"}
TABLE = {**TRAINING, **GROWS, **METHOD, **TAKEN, **ELSEWHERE}


def keys(section=Config, prefix=""):
    """Every key of the schema."""
    hints = get_type_hints(section)
    for f in fields(section):
        if is_dataclass(hints[f.name]):
            yield from keys(hints[f.name], f"{prefix}{f.name}.")
        else:
            yield prefix + f.name


def override(key):
    value = TABLE[key]
    return value if "=" in value else f"{key}={value}"


@pytest.fixture
def results(reference, tmp_path, monkeypatch):
    """A finished run in the current folder; afterwards, no result in it may have changed."""
    shutil.copytree(reference.run_dir, tmp_path / "run")
    for step in reference.training.record_steps:
        (tmp_path / f"net_{step}.pt").touch()
    (tmp_path / "mine.npy").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launchers, "load", lambda name: None)  # nothing is to be launched
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in (tmp_path / "run").rglob("*")
        if path.suffix in (".h5", ".pt", ".json", ".jsonl", ".png")
    }
    assert len(before) > 30
    yield RunDir(tmp_path / "run")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in before} == before


@pytest.fixture
def any_choice(monkeypatch):
    """A key that has one choice today may have others tomorrow."""
    monkeypatch.setattr(validation, "check", lambda config: None)


def test_every_key_of_the_schema_is_here_and_in_the_document():
    assert {key for key in keys() if key.partition(".")[0] not in OTHERS} <= set(TABLE)
    table = DOCUMENT.read_text().partition("<!-- identity -->")[2].partition("<!-- /identity")[0]
    said = {}
    for names, verdict in re.findall(r"^\| (`.*?) \| (.*?) \|$", table, re.MULTILINE):
        said |= dict.fromkeys(re.findall(r"`([\w.]+)`", names), verdict)
    assert set(said) == {*TABLE, *OTHERS}  # of methods, tested with them
    words = ((TRAINING, "refused"), (GROWS, "added"), (METHOD, "refused"), (TAKEN, "taken"))
    for group, word in words:
        (verdict,) = {said[key] for key in group}
        assert verdict.startswith(word)


@pytest.mark.parametrize("key", [*TRAINING, *METHOD])
def test_what_gives_numbers_their_value_is_refused_with_the_difference(
    key, results, skerch, any_choice
):
    config = results.config.read_text()
    status, _, err = skerch("run", results.path, "name=seigh", override(key))
    assert status == 2
    assert re.search(rf"^  {re.escape(key)}\b.*: .+ -> .+$", err, re.MULTILINE)
    assert "which stay as they are" in err
    assert "another run_dir" in err
    assert ("another name" in err) == (key in METHOD)
    assert results.config.read_text() == config


@pytest.mark.parametrize("key", TRAINING)
def test_another_training_is_refused_under_another_name_too(key, results, skerch):
    status, _, err = skerch("run", results.path, "name=other", override(key))
    assert status == 2
    assert f"  {key}" in err


@pytest.mark.parametrize("key", METHOD)
def test_another_method_under_another_name_needs_no_training(key, results, any_choice):
    config = load(results.path, ["name=other", override(key)])
    bind(results, config)
    missing = pipeline.missing(pipeline.tasks(config))
    assert missing
    assert "train" not in {task.stage for task in missing}


@pytest.mark.parametrize("key", GROWS)
@pytest.mark.parametrize("name", ["seigh", "other"])
def test_a_run_that_grows_lacks_what_is_new_only(key, name, results):
    before = pipeline.tasks(load(results.path))
    grown = load(results.path, [f"name={name}", override(key)])
    bind(results, grown)
    missing = {task.id for task in pipeline.missing(pipeline.tasks(grown))}
    new = key in ("training.record_steps", "hessian.splits")
    larger = key.startswith("sketch.") or key == "masks"
    if name == "seigh":
        anew = {task.id for task in before if task.stage in ("merge", "decompose", "analyze")}
        assert not missing & {task.id for task in before} - {"train"} - (anew if larger else set())
    assert ("train" in missing) == new
    assert bool(missing) == (new or larger or name == "other")
    assert pipeline.missing(before) == []


@pytest.mark.parametrize("part", ["training", "method"])
def test_what_an_identity_once_held_of_steps_and_splits_does_not_count(part, reference):
    new = identity(reference, part)
    old = identity(reference, part)
    old["training"] |= asdict(reference.training)
    old["hessian"] |= {"splits": ["train"]}
    assert difference(old, new) == []
    old["training"]["checkpoints"] = "/old/net_*.pt"
    assert difference(old, new) == ["training.checkpoints: state dicts -> None"]


@pytest.mark.parametrize("key", TAKEN)
def test_how_numbers_are_computed_is_taken_and_nothing_runs_again(key, results, skerch):
    status, _, err = skerch("run", results.path, override(key))
    assert (status, err) == (0, "")
    taken = load(results.path)
    assert taken == load(results.path, [override(key)])
    assert load_resolved(results.training_config) == taken


def test_another_run_dir_is_another_run(results):
    config = load(results.path, ["run_dir=other"])
    tasks = pipeline.tasks(config)
    assert pipeline.missing(tasks) == tasks
    bind(RunDir(config.run_dir), config)


def test_a_checkpoint_that_changed_is_refused_and_one_that_is_gone_is_not(small, tmp_path):
    network = load_problem({"name": "digits_mlp"}).model
    torch.save(network().state_dict(), "net_7.pt")
    config = small("training.checkpoints=net_*.pt", "training.record_steps=null")
    run = RunDir(config.run_dir)
    bind(run, config)
    train(run, config)
    bind(run, config)
    recorded = load_parameters(run, 7)
    torch.save(network().state_dict(), "net_7.pt")
    with pytest.raises(RecordedError, match=r"net_7\.pt has changed since .*another run_dir"):
        bind(run, config)
    Path("net_7.pt").unlink()
    bind(run, load(run.path))
    assert torch.equal(load_parameters(run, 7), recorded)
    with pytest.raises(ConfigError, match="no file matches"):
        small("training.checkpoints=net_*.pt")
