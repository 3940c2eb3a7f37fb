"""A folder to begin with: its files run as they are, and the cluster file is what sinfo says."""

from __future__ import annotations

import pytest

from skerch.jobs.config import load
from skerch.jobs.config.resources import resources

SINFO = """\
batch*|40|48|192000|2-00:00:00|up|(null)
batch*|8|64|384000+|2-00:00:00|up|(null)
short|4|16|64000|30:00|up|(null)
accel|12|32|512000|infinite|up|gpu:a100:4(S:0-1)
old|3|8|16000|1:00:00|down|(null)
"""


@pytest.fixture
def sinfo(tmp_path, monkeypatch):
    """A function that has a program `sinfo` print something."""

    def install(text):
        program = tmp_path / "bin" / "sinfo"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return install


def test_what_it_writes_is_fit_and_runs(skerch, tmp_path, monkeypatch, sinfo):
    sinfo("")
    monkeypatch.chdir(tmp_path)
    status, said, _ = skerch("init", "mine")
    assert status == 0
    assert "no file is written: sinfo names no partition" in said
    commands = [line.split()[3:] for line in said.splitlines() if line.startswith("  python")]
    assert [verb for verb, *_ in commands] == ["check", "plan", "run"]
    status, said, _ = skerch(*commands[0])
    assert (status, "unfit" in said) == (0, False)
    small = ["training.record_steps=[20]", "training.max_steps=20", "hessian.splits=[test]"]
    status, said, _ = skerch(*commands[2], *small)
    assert status == 0
    assert said.splitlines()[-1].endswith("runs/mine/report.html")


def test_the_cluster_file_is_what_sinfo_says(skerch, tmp_path, sinfo):
    sinfo(SINFO)
    skerch("init", tmp_path)
    text = (tmp_path / "cluster.yaml").read_text()
    assert "#   batch              48    48      192000    2-00:00:00" in text
    assert "old" not in text
    wanted = resources(
        load(str(tmp_path / "experiment.yaml"), [f"cluster={tmp_path}/cluster.yaml"])
    )
    assert (wanted["merge"].partition, wanted["merge"].gpus) == ("batch", None)
    assert (wanted["measure"].partition, wanted["measure"].gpus) == ("accel", 1)
    assert wanted["train"].partition == "accel"
    assert wanted["merge"].memory == 16_000


def test_two_problems_of_one_name_do_not_share_a_run(skerch, tmp_path, monkeypatch, sinfo):
    sinfo("")
    monkeypatch.chdir(tmp_path)
    few = ["training.record_steps=[0]", "training.max_steps=0", "sketch.outer=2", "sketch.probes=3"]
    few += ["hessian.splits=[test]", "run_dir=runs/both"]
    for name in ("one", "two"):
        skerch("init", name)
    assert skerch("run", "one/experiment.yaml", *few)[0] == 0
    assert skerch("run", "two/experiment.yaml", *few)[0] == 0  # the same file elsewhere
    problem = tmp_path / "two" / "problem.py"
    problem.write_text(problem.read_text().replace("nn.Tanh()", "nn.Sigmoid()"))
    status, _, said = skerch("run", "one/experiment.yaml", *few)
    assert (status, f"the problem in {problem}" in said) == (1, True)


def test_what_is_there_stays(skerch, tmp_path, sinfo):
    sinfo("")
    (tmp_path / "problem.py").write_text("mine")
    status, _, said = skerch("init", tmp_path)
    assert (status, "problem.py is there already" in said) == (1, True)
    assert (tmp_path / "problem.py").read_text() == "mine"
    assert not (tmp_path / "experiment.yaml").exists()
