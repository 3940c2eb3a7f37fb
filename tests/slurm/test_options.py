"""What Slurm itself makes of options, as their user wrote them."""

from __future__ import annotations

import re

import pytest

from skerch.jobs.config import load
from skerch.jobs.config.resources import resources
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.script import script


@pytest.fixture
def sbatch(cluster, tmp_path):
    """A function that submits a training with what `resources.train` holds; the job's id."""

    def submit(asked, *options):
        config = load("digits", [f"resources.train={asked}", f"run_dir={tmp_path}"])
        submission = Submission("token", "seigh", "train", None)
        wanted = resources(config)["train"]
        text = script(submission, wanted, tmp_path, tmp_path / "log")
        return cluster.run("sbatch", "--parsable", *options, input=text).stdout.strip()

    return submit


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ("nice: 0", " Nice=0 "),
        ("nice: 1", " Nice=1 "),
        ("begin: 16:00", r" EligibleTime=\S+T16:00:00 "),
        ("exclusive: true", " OverSubscribe=NO "),
        ('network: "it\'s 100 %  # a=b; ~"', " Network=it's 100 %  # a=b; ~ "),
    ],
)
def test_slurm_gives_what_is_written(cluster, sbatch, option, shown):
    job = sbatch(f"{{sbatch: {{{option}}}}}", "--hold")
    assert re.search(shown, cluster.run("scontrol", "show", "job", job).stdout.replace("\n", " "))
    cluster.run("scancel", job)


def test_what_setup_sets_reaches_a_task_also_where_sbatch_exports_nothing(sbatch, tmp_path):
    show = '[--, /bin/sh, -c, "echo it is $WORD"]'
    sbatch(f"{{sbatch: {{export: NONE}}, setup: export WORD=there, srun: {show}}}", "--wait")
    assert "it is there\n" in (tmp_path / "log").read_text()


def test_a_setup_line_that_fails_ends_the_job_before_its_program(cluster, sbatch, tmp_path):
    job = sbatch("{setup: [true, (exit 3) || true, ls /nowhere, echo there]}")
    state = ("scontrol", "--oneliner", "show", "job", job)
    while "JobState=FAILED" not in (said := cluster.run(*state).stdout):
        assert "JobState=COMPLETED" not in said
    assert " ExitCode=2:0 " in said
    log = (tmp_path / "log").read_text().splitlines()
    words = "error: the setup line 'ls /nowhere' ended with status 2; mend it, or end it in || true"
    assert log[-1] == words
    assert "there" not in log
