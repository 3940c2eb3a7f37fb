"""The command line as a user meets it, as a program of its own where that matters."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch

from skerch.jobs.run_dir import RunDir

ROOT = Path(__file__).parents[2]


def program(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "skerch", *arguments], cwd=cwd, capture_output=True, text=True
    )


def test_a_clone_in_the_current_folder_that_hides_the_program_is_named(tmp_path):
    (tmp_path / "skerch").mkdir()
    done = program("status", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: the folder skerch in {tmp_path} hides the program: type skerch instead of "
        "python -m skerch, or go to another folder.\n",
    )


def test_too_little_memory_is_said_in_one_sentence(skerch, monkeypatch):
    def sizes(*_, **__):
        return bytearray(2**60)

    monkeypatch.setattr("skerch.a_priori.sketch_sizes", sizes)
    status, _, error = skerch("prio_hpars", "--shape", "7,7", "--budget", "100")
    assert status == 1
    assert error.startswith("error: memory is short (")
    assert error.count("\n") == 1


def test_help_imports_nothing_heavy(tmp_path):
    script = "import sys; sys.argv = ['skerch', '--help']; import skerch.__main__ as m\n"
    script += "try:\n    m.main()\nexcept SystemExit: pass\n"
    script += "assert not {'torch', 'numpy', 'h5py', 'omegaconf'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)


def test_help_begins_with_what_one_begins_with(skerch):
    lines = skerch("--help")[1].splitlines()
    commands = [line.split()[1] for line in lines if line[:2] == "│ " and line[2].isalpha()]
    assert commands[:5] == ["init", "run", "plan", "check", "submit"]
    assert commands[-4:] == ["prio_hpars", "post_bounds", "create_hdf5_layout", "merge_hdf5"]


def test_version_is_of_all_that_numbers_depend_on(skerch):
    status, out, _ = skerch("--version")
    assert status == 0
    for name, version in (
        ("torch", torch.__version__.partition("+")[0]),
        ("h5py", h5py.__version__),
        ("(HDF5", h5py.version.hdf5_version),
        ("Python", sys.version.split()[0]),
    ):
        assert f"{name} {version}" in out


def test_a_users_own_model_in_one_file(tmp_path, blocks, skerch, monkeypatch):
    (problem,) = (text for language, text in blocks("own_model.md") if language == "python")
    (experiment,) = (text for language, text in blocks("own_model.md") if language == "yaml")
    assert len(problem.splitlines()) <= 20
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_problem.py").write_text(problem)
    (folder / "experiment.yaml").write_text(experiment)
    done = program("run", "mine/experiment.yaml", "launcher.workers=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "20 eigenpairs from 60 matvecs" in done.stdout
    assert (tmp_path / "runs" / "experiment" / "seigh").is_dir()
    monkeypatch.chdir(tmp_path)
    status, out, _ = skerch("check", "mine/experiment.yaml")
    assert status == 0, out


def test_output_that_cannot_be_written_is_one_sentence():
    command = [sys.executable, "-m", "skerch", "prio_hpars", "--shape", "9,9", "--budget", "99"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device.\n"


@pytest.mark.slow
def test_stage_programs_alone_give_the_bits_of_a_run(small, reference):
    config = small()
    shutil.copytree(reference.run_dir, config.run_dir)
    run = RunDir(config.run_dir)
    directory, expected = run.step("seigh", 60, "test"), run.step("seigh", 60, "test").merged
    whole = expected.read_bytes()
    shutil.rmtree(directory.path)

    def stage(name, *options):
        command = [
            sys.executable,
            "-m",
            f"skerch.jobs.stages.{name}",
            config.run_dir,
            "--step",
            "60",
        ]
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
    for program in (["range_finder", "--round", "1"], ["measure", "--round", "3"]):
        assert f"round {program[-1]}" in stage(*program).stderr.replace("--round", "round")
    refused = stage("measure", "--tasks", "99")
    assert refused.returncode == 1
    assert "There is no measurement task 99" in refused.stderr


def test_status_counts_what_is_done_and_names_what_failed(small, reference, skerch):
    config = small()
    shutil.copytree(reference.run_dir, config.run_dir)
    directory = RunDir(config.run_dir).step("seigh", 20, "test")
    directory.eigh.unlink()
    shutil.rmtree(directory.measurements(1))
    found = json.loads(skerch("status", config.run_dir, "--json")[1])
    (method,) = found["methods"]
    counts = method["stages"]["decompose"]
    assert (counts["tasks"], counts["done"], counts["missing"]) == (2, 1, 1)
    assert method["stages"]["train"]["missing"] == 0
    assert skerch("status", config.run_dir, "--verify")[0] == 0
    merged = bytearray(directory.merged.read_bytes())
    merged[len(merged) // 2] ^= 1
    directory.merged.write_bytes(merged)
    status, table, _ = skerch("status", config.run_dir, "--verify")
    assert status == 1
    assert f"{directory.merged} is damaged" in " ".join(table.split())


def test_damage_among_files_that_are_all_there_is_no_end(skerch, reference, tmp_path):
    shutil.copytree(reference.run_dir, tmp_path / "run")
    found = tmp_path / "run" / "seigh" / "step-000060-test" / "overlap.json"
    found.write_text(found.read_text().replace("0.", "1.", 1))
    status, said, _ = skerch("status", tmp_path / "run", "--verify")
    assert (status, "are done" in said) == (1, False)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("prio_hpars --shape 100,200 --budget 12345", "outer: 29 inner: 60"),
        ("prio_hpars --shape 200,200 --budget 12345 --sym", "outer: 35 inner: 73"),
        ("post_bounds --apost_n 30 --apost_err 0.5", "<= 5.518e-02"),
    ],
)
def test_sizes_and_bounds_are_had_by_the_commands_of_the_design(skerch, command, words):
    status, out, _ = skerch(*command.split())
    assert status == 0
    assert words in " ".join(out.split())


def test_plan_says_what_a_run_takes(tmp_path, monkeypatch, skerch):
    monkeypatch.chdir(tmp_path)
    status, plan, _ = skerch("plan", "digits")
    assert status == 0
    assert "1,930 parameters, 6 Hessians" in " ".join(plan.split())
    assert "1,380" in plan
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (["run", "nothing.yaml"], "no experiment file nothing.yaml", 2),
        (["run", "exam.yaml"], "(there: example.yaml)", 2),
        (["plan", "example.py"], 'problem: {factory: "example:FUNCTION"}', 2),
        (["run", "digits", "hessian.datapoints=505"], "multiple of its 10 classes", 1),
        (["run", "digits", "sketch.kind=guassian"], "gaussian", 2),
        (["status", "nowhere"], "nowhere", 2),
        (["prio_hpars", "--shape", "100", "--budget", "5"], "--shape 100", 2),
        (["post_bounds", "--apost_n", "0", "--apost_err", "0.5"], "0 probes", 1),
    ],
)
def test_mistakes_end_in_a_sentence_and_a_status(
    tmp_path, monkeypatch, skerch, arguments, words, status
):
    monkeypatch.chdir(tmp_path)
    for name in ("example.yaml", "example.py"):
        (tmp_path / name).touch()
    found, out, err = skerch(*arguments)
    assert words in " ".join((out + err).split())
    assert found == status
    assert "Traceback" not in out + err
