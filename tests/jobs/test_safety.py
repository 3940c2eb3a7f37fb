"""No file that a run reads executes code, and no name leads out of the run directory."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skerch.errors import SkerchError
from skerch.files import sweep
from skerch.jobs import config as configs
from skerch.jobs import pipeline
from skerch.jobs.config import ConfigError, validation
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir import training_files as recorded
from skerch.jobs.run_dir.binding import bind
from skerch.jobs.training.session import train
from skerch.jobs.training.state_dicts import StateDictError


class Payload:
    """What makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture
def nothing_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("executed").exists()


def as_tensors(path):
    torch.save({"state": {"step": Payload()}, "hash": ""}, path)


def as_old_tensors(path):
    torch.save({"weight": Payload()}, path, _use_new_zipfile_serialization=False)


def as_pickle(path):
    path.write_bytes(pickle.dumps(Payload(), protocol=2))


PICKLES = pytest.mark.parametrize("write", [as_tensors, as_old_tensors, as_pickle])


def test_the_payload_is_real(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload()))
    assert Path("executed").is_dir()


@PICKLES
def test_no_pickle_is_executed_in_place_of_datapoints(write, reference, tmp_path, nothing_executed):
    run = RunDir(shutil.copytree(reference.run_dir, tmp_path / "run"))
    write(run.hessian_data)
    with pytest.raises(SkerchError, match=r"hessian_data\.pt is damaged"):
        recorded.load_hessian_data(run, "test")


@PICKLES
def test_no_pickle_is_executed_in_place_of_a_checkpoint(write, small, nothing_executed):
    config = small()
    run = RunDir(config.run_dir)
    bind(run, config)
    write(run.checkpoint)
    with pytest.raises(SkerchError, match=r"checkpoint\.pt is damaged"):
        train(run, config)


@PICKLES
def test_no_pickle_is_executed_in_place_of_a_state_dict(write, small, nothing_executed):
    write(Path("net_1.pt"))
    config = small("training.checkpoints=net_*.pt", "training.record_steps=null")
    with pytest.raises(StateDictError, match=r"net_1\.pt holds more than tensors"):
        train(RunDir(config.run_dir), config)


def test_any_bytes_in_place_of_a_state_dict_are_refused_by_name(small):
    torch.save({"w": torch.ones(9)}, "net_1.pt")
    zipped = Path("net_1.pt").read_bytes()
    torch.save({"w": torch.ones(9)}, "net_1.pt", _use_new_zipfile_serialization=False)
    old = Path("net_1.pt").read_bytes()
    config = small("training.checkpoints=net_*.pt", "training.record_steps=null")

    @settings(max_examples=30, deadline=None)
    @given(st.sampled_from([zipped, old]), st.integers(0, 2**12), st.binary(max_size=40))
    def replace(content, start, piece):
        start %= len(content)
        Path("net_1.pt").write_bytes(content[:start] + piece + content[start + len(piece) :])
        with pytest.raises(StateDictError, match=r"net_1\.pt"):
            train(RunDir(config.run_dir), config)

    replace()


TAG = "!!python/object/apply:os.mkdir [executed]"


@pytest.mark.parametrize(
    "text", [f"problem: {TAG}", f"? {TAG}\n: 1", f"problem: {{x: {TAG}}}", TAG]
)
def test_no_tag_of_an_experiment_file_is_executed(text, nothing_executed):
    Path("tagged.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"tagged\.yaml is not valid YAML"):
        configs.load("tagged.yaml")
    with pytest.raises(ConfigError):
        configs.load("digits", [f"problem.x={TAG}"])


def test_looking_at_a_run_does_not_import_its_problem(reference, tmp_path, monkeypatch, skerch):
    monkeypatch.chdir(tmp_path)
    run = RunDir(shutil.copytree(reference.run_dir, "run"))
    Path("stranger.py").write_text("import os\nos.mkdir('executed')\n")
    config = run.load("seigh")
    config.problem, config.problem_path = {"factory": "stranger:make"}, str(tmp_path)
    for path in (run.config, run.hessian_config("seigh")):
        configs.save(config, path)
    assert skerch("status", "run", "--verify")[0] == 0
    assert not Path("executed").exists()
    assert skerch("plan", "run")[0] == 2  # as it has no function make
    assert Path("executed").exists()


NAMES = st.text(max_size=12) | st.lists(
    st.sampled_from(["..", ".", "/", "a", "\\", "~", "\n", "C:", "%2e", "é"]), max_size=5
).map("".join)


def test_every_file_of_a_run_lies_in_its_directory(small):
    config = small("run_dir=/a/b", "sketch.outer=2", "sketch.probes=2")
    run = RunDir(config.run_dir)

    @settings(max_examples=200, deadline=None)
    @given(NAMES, NAMES)
    def names(name, split):
        config.name, config.hessian.splits = name, [split]
        try:
            validation.check(config)
        except ConfigError:
            return
        for task in pipeline.tasks(config):
            for path in (*task.outputs, run.task_log(task.id)):
                inside = Path(os.path.normpath(path)).relative_to("/a/b")
                assert inside.parts[0] in (name, "training", "figures", "logs")

    names()


@pytest.mark.parametrize("value", ["../up", "/abs", "a/b", "..", "", "config.yaml", "logs"])
def test_a_name_that_leads_elsewhere_is_refused_also_in_a_config_with_a_checksum(value, small):
    config = small()
    config.name = value
    configs.save(config, Path("config.yaml"))
    for load in (configs.load_resolved, configs.load):
        with pytest.raises(ConfigError, match=r"^name is "):
            load(Path("config.yaml"))


def test_nothing_behind_a_link_is_swept_away(tmp_path):
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    run.mkdir()
    leftover = f".x.h5.{os.uname().nodename}.{2**22 + 1}.tmp"  # of a process that cannot be
    for folder in (outside, run):
        (folder / leftover).touch()
    (run / "link").symlink_to(outside)
    sweep(run)
    assert (outside / leftover).exists()
    assert not (run / leftover).exists()
