"""The step of each file of `training.checkpoints`, and who looks at those files."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from skerch.jobs.config import load, load_resolved, save
from skerch.jobs.config.checkpoints import checkpoint_files
from skerch.jobs.errors import ConfigError
from skerch.jobs.problems import load_problem


@pytest.fixture
def steps(tmp_path):
    """A function that gives the steps of a pattern, after making the files."""

    def found(pattern, *names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
        return [
            (step, str(path.relative_to(tmp_path)))
            for step, path in checkpoint_files(str(tmp_path / pattern)).items()
        ]

    return found


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500.bin", 500),
        ("net.000300.pt", 300),
        ("ckpt_7.pth.tar", 7),
        ("(12) net.pt", 12),
        ("epoch=3-valloss=0.33.ckpt", None),
        ("epoch=3-step=1407.ckpt", None),
        ("epoch_3_step300.pt", None),
        ("ckpt_1e4.pt", None),
        ("ckpt_2.5e-3.pt", None),
        ("ckpt_10k.pt", None),
        ("resnet18.pt", None),
        ("ckpt_0.5.pt", None),
        ("best.pt", None),
    ],
)
def test_only_a_number_by_itself_is_a_step(name, step, steps):
    if step is not None:
        assert steps("*", name) == [(step, name)]
        return
    with pytest.raises(ConfigError, match=r"does not tell its step: .*net_\{step\}\.pt"):
        steps("*", name)


@pytest.mark.parametrize(
    ("pattern", "name", "step"),
    [
        ("epoch={step}-*.ckpt", "epoch=03-valloss=0.33.ckpt", 3),
        ("*step={step}*.ckpt", "epoch=3-step=1407-v1.ckpt", 1407),
        ("ckpt{step}.pt", "ckpt10000.pt", 10000),
        ("{step}k.pt", "10k.pt", 10),
        ("{step}/model_2.pt", "0300/model_2.pt", 300),
        ("run_?/{step}.pt", "run_1/20.pt", 20),
        ("{step}/net_{step}.pt", "40/net_40.pt", 40),
        ("{step}/net_{step}.pt", "40/net_50.pt", None),
        ("ckpt_{step}*.pt", "ckpt_1e4.pt", None),
        ("ckpt_{step}*.pt", "ckpt_10k.pt", None),
        ("*{step}.pt", "loss=0.33.pt", None),
        ("*_{step}_*.pt", "a_1_2_b.pt", None),
    ],
)
def test_a_pattern_says_where_the_step_is(pattern, name, step, steps):
    if step is not None:
        assert steps(pattern, name) == [(step, name)]
        return
    with pytest.raises(ConfigError, match=r"has not one whole number at the \{step\} of"):
        steps(pattern, name)


def test_files_without_a_number_at_the_step_do_not_match(steps):
    names = ["net_best.pt", "net_9.pt", "net_010.pt"]
    assert steps("net_{step}.pt", *names) == [(9, "net_9.pt"), (10, "net_010.pt")]
    with pytest.raises(ConfigError, match=r"net_010\.pt and .*net_10\.pt both have step 10"):
        steps("net_{step}.pt", "net_10.pt")


def test_a_file_tells_its_step_and_its_name_must_not_contradict_it(steps, tmp_path):
    weights = {"w": torch.ones(1)}
    torch.save({"state_dict": weights, "global_step": 1407, "step": 2}, tmp_path / "e=3-v1.pt")
    torch.save({"model": weights, "iter_num": 2000}, tmp_path / "ckpt.pt")
    torch.save({"net": weights, "step": 3000}, tmp_path / "net_3000.pt")
    save_file(weights, tmp_path / "last.safetensors", {"step": "4000"})
    save_file(weights, tmp_path / "net_5000.safetensors")
    assert [step for step, _ in steps("*")] == [1407, 2000, 3000, 4000, 5000]
    torch.save({"net": weights, "step": 1407}, tmp_path / "epoch=3.pt")
    with pytest.raises(ConfigError, match=r"step 1407 by its content and of 3 by its name; write"):
        steps("epoch=3.pt")
    assert steps("epoch={step}.pt") == [(3, "epoch=3.pt")]


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("epoch={step}-*.ckpt", "epoch=7-loss=0.5.ckpt"),
        ("{step}/model.pt", "7/model.pt"),
        ("[mn]et_{step}.pt", "net_7.pt"),
        ("?et{step}.pt", "net7.pt"),
    ],
)
def test_a_pattern_is_taken_as_it_is_typed_and_kept(pattern, name, small, tmp_path):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).touch()
    config = small(f"training.checkpoints={pattern}", "training.record_steps=null")
    assert config.training.record_steps == [7]
    assert config.training.checkpoints == str(tmp_path / pattern)
    saved = tmp_path / "run" / "config.yaml"
    save(config, saved)
    Path(name).unlink()
    assert load_resolved(saved) == config
    assert load(saved).training == config.training


def test_a_pattern_with_the_step_is_loaded_without_torch(tmp_path):
    (tmp_path / "net_7.pt").touch()
    code = (
        "import sys; from skerch.jobs.config import load;"
        "load('digits', ['training.checkpoints=net_{step}.pt', 'training.record_steps=[7]']);"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_plan_and_check_look_at_the_last_checkpoint(small_overrides, skerch, tmp_path, monkeypatch):
    """Whose zero weights give each of ten classes the same probability."""
    monkeypatch.chdir(tmp_path)
    state = load_problem({"name": "digits_mlp"}).model().state_dict()
    for step, factor in ((20, 1), (1000, 0)):
        torch.save({n: factor * v for n, v in state.items()}, f"net_{step:06d}.pt")
    found = ["training.checkpoints=net_{step}.pt", "training.record_steps=null"]
    overrides = [*small_overrides, *found]
    status, out, err = skerch("check", "digits", *overrides)
    assert (status, err) == (0, "")
    assert f"parameters of {tmp_path}/net_001000.pt, step 1000\n" in out
    assert "the loss is 2.30259" in out
    lines = skerch("plan", "digits", *overrides)[1].splitlines()
    assert f"step     20 from {tmp_path}/net_000020.pt" in lines
    last = f"step     1,000 from {tmp_path}/net_001000.pt, which check and --calibrate look at"
    assert last in lines


def test_check_says_whose_parameters_it_looks_at(reference, skerch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(reference.run_dir, "run")
    assert f"recorded step 60 of {tmp_path}/run\n" in skerch("check", "run")[1]
    assert "the initial network\n" in skerch("check", "digits")[1]
    status, _, err = skerch("check", "run", "problem.width=20")
    assert (status, "There is no key problem.width" in err) == (2, True)
