"""The command line as a user meets it: a program of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from skerch.jobs.run_dir import RunDir

ROOT = Path(__file__).parents[2]


def skerch(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "skerch", *arguments], cwd=cwd, capture_output=True, text=True
    )


def code_blocks(path, language):
    """The code blocks of a Markdown file."""
    return [
        block.split("```")[0] for block in path.read_text().split(f"```{language}\n")[1:]
    ]  # fmt: skip


def test_help_imports_nothing_heavy(tmp_path):
    script = "import sys; sys.argv = ['skerch', '--help']; import skerch.__main__ as m\n"
    script += "try:\n    m.main()\nexcept SystemExit: pass\n"
    script += "assert not {'torch', 'numpy', 'h5py', 'omegaconf'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)


def test_a_users_own_model_in_one_file(tmp_path):
    (problem,) = code_blocks(ROOT / "docs" / "own_model.md", "python")
    (experiment,) = code_blocks(ROOT / "docs" / "own_model.md", "yaml")
    assert len(problem.splitlines()) <= 20
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_problem.py").write_text(problem)
    (folder / "experiment.yaml").write_text(experiment)
    done = skerch("run", "mine/experiment.yaml", "launcher.workers=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "20 eigenpairs from 40 matvecs" in done.stdout
    assert (tmp_path / "runs" / "experiment" / "seigh").is_dir()
    fit = skerch("check", "mine/experiment.yaml", cwd=tmp_path)
    assert fit.returncode == 0, fit.stdout


@pytest.mark.slow
def test_stage_programs_alone_give_the_bits_of_a_run(small, reference):
    config = small()
    shutil.copytree(reference.run_dir, config.run_dir)
    run = RunDir(config.run_dir)
    directory, expected = run.step("seigh", 60, "test"), run.step("seigh", 60, "test").merged
    whole = expected.read_bytes()
    shutil.rmtree(directory.path)

    def stage(name, *options):
        command = [sys.executable, "-m", f"skerch.jobs.{name}", config.run_dir, "--step", "60"]
        return subprocess.run([*command, *options], capture_output=True, text=True, cwd="/")

    for program in (
        ["layout"],
        ["measure", "--tasks", "1-2"],
        ["measure", "--split", "test", "--name", "seigh"],
        ["range_finder"],
        ["layout", "--round", "2"],
        ["measure", "--round", "2"],
        ["merge"],
        ["decompose"],
        ["analyze"],
    ):
        done = stage(*program)
        assert done.returncode == 0, done.stderr
    assert expected.read_bytes() == whole
    refused = stage("measure", "--tasks", "99")
    assert refused.returncode == 1
    assert "There is no measurement task 99" in refused.stderr


def test_status_counts_what_is_done_and_names_what_failed(small, reference):
    config = small()
    shutil.copytree(reference.run_dir, config.run_dir)
    directory = RunDir(config.run_dir).step("seigh", 20, "test")
    directory.eigh.unlink()
    shutil.rmtree(directory.measurements(1))
    found = json.loads(skerch("status", config.run_dir, "--json", cwd="/").stdout)
    (method,) = found["methods"]
    counts = method["stages"]["decompose"]
    assert (counts["tasks"], counts["done"], counts["missing"]) == (2, 1, 1)
    assert method["stages"]["train"]["missing"] == 0
    assert skerch("status", config.run_dir, "--verify", cwd="/").returncode == 0
    merged = bytearray(directory.merged.read_bytes())
    merged[len(merged) // 2] ^= 1
    directory.merged.write_bytes(merged)
    table = skerch("status", config.run_dir, "--verify", cwd="/")
    assert table.returncode == 1
    assert f"{directory.merged} is damaged" in " ".join(table.stdout.split())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("prio_hpars --shape 100,200 --budget 12345", "outer: 29 inner: 60"),
        ("prio_hpars --shape 200,200 --budget 12345 --sym", "outer: 35 inner: 73"),
        ("post_bounds --apost_n 30 --apost_err 0.5", "<= 5.518e-02"),
    ],
)
def test_sizes_and_bounds_are_had_by_the_commands_of_the_design(tmp_path, command, words):
    done = skerch(*command.split(), cwd=tmp_path)
    assert done.returncode == 0
    assert words in " ".join(done.stdout.split())


def test_plan_says_what_a_run_takes(tmp_path):
    plan = skerch("plan", "digits", cwd=tmp_path)
    assert plan.returncode == 0
    assert "1,930 parameters, 6 Hessians" in " ".join(plan.stdout.split())
    assert "1,380" in plan.stdout
    assert not (tmp_path / "runs").exists()


def test_exhaustive_agrees_with_the_sketch(small, reference):
    config = small()
    shutil.copytree(reference.run_dir, config.run_dir)
    done = skerch("exhaustive", str(RunDir(config.run_dir).config), "--step", "60", cwd="/")
    assert done.returncode == 0, done.stderr
    first = next(line for line in done.stdout.splitlines() if "eigenvalue 1 " in line)
    assert float(first.split("│")[-2]) == pytest.approx(1, abs=0.01)


def test_a_model_that_is_not_fit_is_found_out(tmp_path):
    (tmp_path / "live.py").write_text(
        """
import torch
from torch.utils.data import TensorDataset
from skerch.jobs.problems import Problem

def make():
    return Problem(
        model=lambda: torch.nn.Linear(4, 1),
        data=lambda split: TensorDataset(torch.randn(50, 4), torch.randn(50, 1)),
        loss_fn=lambda model, batch: torch.dropout(model(batch[0]), 0.5, True).square().mean(),
    )
"""
    )
    (tmp_path / "live.yaml").write_text(
        "problem: {factory: 'live:make'}\nhessian: {datapoints: 20, subset: first}\n"
        "training: {max_steps: 2, batch_size: 10}\nsketch: {outer: 1}\n"
    )
    check = skerch("check", "live.yaml", cwd=tmp_path)
    assert check.returncode == 1
    assert "switch off dropout" in " ".join(check.stdout.split())
    run = skerch("run", "live.yaml", cwd=tmp_path)
    assert run.returncode == 1
    assert "switch off dropout" in run.stderr
    assert "Traceback" not in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (["run", "nothing.yaml"], "no experiment file nothing.yaml", 2),
        (["run", "digits", "sketch.outr=3"], "did you mean sketch.outer", 2),
        (["run", "digits", "launcher.name=cloud"], "launcher.name is 'cloud'", 2),
        (["run", "digits", "hessian.datapoints=505"], "multiple of its 10 classes", 1),
        (["run", "digits", "sketch.kind=guassian"], "gaussian", 2),
        (["run", "digits", "sketch.outer=1500", "sketch.inner=3000"], "N=1930", 2),
        (["status", "nowhere"], "nowhere", 2),
        (["prio_hpars", "--shape", "100", "--budget", "5"], "--shape 100", 2),
        (["post_bounds", "--apost_n", "0", "--apost_err", "0.5"], "0 probes", 1),
    ],
)
def test_mistakes_end_in_a_sentence_and_a_status(tmp_path, arguments, words, status):
    done = skerch(*arguments, cwd=tmp_path)
    assert words in " ".join((done.stdout + done.stderr).split())
    assert done.returncode == status
    assert "Traceback" not in done.stdout + done.stderr
