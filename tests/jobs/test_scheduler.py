"""How Slurm's commands are called: with which variables, and what a silent sbatch may have done."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from skerch.jobs.launchers.slurm import journal, scheduler
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.observed import observe_all
from skerch.jobs.launchers.slurm.programs import PERSISTENCE, SlurmError
from skerch.jobs.run_dir import RunDir

FAMILIES = ("SBATCH", "SRUN", "SQUEUE", "SCANCEL", "SACCT", "SCONTROL", "SLURM")
SITE = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_SACK_KEY")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A function that puts shell scripts on PATH, by name."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(**scripts):
        for name, text in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)

    return make


@pytest.fixture
def submission(tmp_path):
    return Submission(scheduler.new_token(tmp_path), "seigh", "train", None, job=None)


def test_of_the_shells_variables_only_those_that_say_which_slurm_arrive(
    programs, submission, tmp_path, monkeypatch
):
    for family in FAMILIES:
        for name in ("PARTITION", "ARRAY_INX", "FORMAT", "STATE", "CPUS_PER_TASK", "JOB_ID"):
            monkeypatch.setenv(f"{family}_{name}", "7")
    for name in SITE:
        monkeypatch.setenv(name, "x")
    seen = tmp_path / "seen"
    commands = ("squeue", "sacct", "sbatch", "scancel", "scontrol")
    listing = f'env >>{seen}; for f; do :; done; m=${{f%%|*}}; echo "$m|F|K|T|r|N|j|Z|k|$m"'
    programs(**dict.fromkeys(commands, f"env >>{seen}; echo 12"))
    programs(squeue=listing)
    monkeypatch.setenv("MARKER", "here")
    assert scheduler.submit("", 0, tmp_path, submission) == "12"
    known = Submission(submission.token, "seigh", "train", None, job="12")
    scheduler.elements(tmp_path, [known], 60)
    scheduler.cancel(["12"])
    scheduler.requeue("12")
    text = seen.read_text()
    assert text.count("MARKER=here") == len(commands)
    lines = [line for line in text.splitlines() if line.startswith(FAMILIES)]
    assert {line.split("=")[0] for line in lines} == set(SITE)


LISTED = """for f; do :; done; m=${f%%|*}; echo "$m|F|K|T|r|N|j|Z|k|$m"
test -e QUEUE && echo "$m|31|N/A|PENDING|None||$(cat QUEUE)|$m"; exit 0"""


@pytest.mark.parametrize("comment", [True, False])
def test_a_job_that_a_silent_sbatch_took_is_found(
    programs, submission, tmp_path, monkeypatch, comment
):
    queue, name = tmp_path / "queue", f"{tmp_path.name}.train"
    words = submission.token if comment else "(null)"
    programs(
        sbatch=f"echo '{name}|{tmp_path}|{words}' >{queue}; exec sleep 60",
        squeue=LISTED.replace("QUEUE", str(queue)),
    )
    monkeypatch.setattr(scheduler, "PATIENCE", 1.0)
    assert scheduler.submit("", 0, tmp_path, submission) == "31"


def test_a_silent_sbatch_that_took_none_says_that_this_is_not_known(
    programs, submission, tmp_path, monkeypatch
):
    programs(sbatch="exec sleep 60", squeue=LISTED.replace("QUEUE", str(tmp_path / "none")))
    monkeypatch.setattr(scheduler, "PATIENCE", 1.0)
    monkeypatch.setattr(scheduler.time, "sleep", lambda seconds: None)
    monkeypatch.setenv(PERSISTENCE, "0")
    with pytest.raises(SlurmError, match=r"sbatch does not answer within 1 s.*is not known"):
        scheduler.submit("", 0, tmp_path, submission)


def test_of_several_runs_the_scheduler_is_asked_once(programs, submission, tmp_path):
    asked = tmp_path / "asked"
    job = '; echo "$m|31|N/A|RUNNING|None|n1|x|/x|(null)|$m"'
    head = 'for f; do :; done; m=${f%%|*}; echo "$m|F|K|T|r|N|j|Z|k|$m"'
    programs(
        squeue=f"echo squeue >>{asked}; {head}{job}",
        sacct=f'for f; do :; done; echo "sacct $f" >>{asked}; echo "32|FAILED|n1|3:0"',
    )
    runs = [RunDir(tmp_path / name) for name in ("one", "two", "three")]
    for run, id in zip(runs, ("31", "32"), strict=False):
        given = replace(submission, token=scheduler.new_token(run.path))
        journal.record(run, given)
        journal.record(run, replace(given, job=id))
    one, two, three = observe_all(runs, 60)
    assert one.element("train").state == "RUNNING"
    assert two.element("train").state == "FAILED"
    assert (three.history, three.elements, three.silence) == ([], {}, None)
    assert sorted(asked.read_text().splitlines()) == ["sacct 31,32", "squeue"]
    asked.unlink()
    programs(squeue=f"echo squeue >>{asked}; exit 1", sacct="exit 1")
    silent = [each.silence for each in observe_all(runs, 60)]
    assert silent[0] == silent[1]
    assert silent[0].startswith("squeue ")
    assert silent[2] is None
    assert asked.read_text() == "squeue\n"
