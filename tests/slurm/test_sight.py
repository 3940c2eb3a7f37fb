"""No job is lost from sight, and none is submitted twice: by the shell's variables, by answers that
are none, or by what sbatch prints beside an id.

The queue that is compared is asked by the tests themselves, with no variables set.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace

import pytest

pytestmark = pytest.mark.slow

LATER = "resources.all.sbatch.begin=now+1hour"
VARIABLES = {
    "squeue": {
        "SQUEUE_PARTITION": "urgent",
        "SQUEUE_ACCOUNT": "other",
        "SQUEUE_NAMES": "other",
        "SQUEUE_STATES": "COMPLETED",
        "SQUEUE_USERS": "nobody",
        "SQUEUE_FORMAT2": "jobid",
    },
    "sbatch": {
        "SBATCH_ARRAY_INX": "0-2",
        "SBATCH_PARTITION": "urgent",
        "SBATCH_TIMELIMIT": "3",
        "SBATCH_HOLD": "1",
        "SBATCH_NO_REQUEUE": "1",
        "SBATCH_EXCLUSIVE": "1",
    },
    "scancel": {
        "SCANCEL_PARTITION": "urgent",
        "SCANCEL_STATE": "RUNNING",
        "SCANCEL_NAME": "other",
        "SCANCEL_USER": "nobody",
    },
}
NO_LIST = {
    "an error and nothing, with status 0": "echo 'squeue: error: no cluster answers' >&2",
    "a banner alone": "echo 'Maintenance on Monday'",
    "jobs in a form that was not asked for": "SQUEUE --all -h",
    "an error of one of several clusters": (
        'echo "squeue: error: other: Unable to contact slurm controller" >&2; SQUEUE "$@"'
    ),
    "a sentence among the jobs": 'SQUEUE "$@"; echo "and 12 more"',
}


@pytest.fixture(scope="module")
def waiting(new_run, train, tmp_path_factory):
    """A run with six jobs, which wait for an hour."""
    with new_run(tmp_path_factory.mktemp("waiting") / "run") as run:
        train(run)
        run.submit(LATER)
        yield run


def asked_for(run):
    """What each job asks for, by name, its array indices, and whether it is held.

    Of a reason only that is compared: the others follow the scheduler's own rounds.
    """
    said = run.cluster.run("scontrol", "--oneliner", "show", "job").stdout.splitlines()
    jobs = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in said]
    keys = ("ArrayTaskId", "Partition", "TimeLimit", "Requeue", "OverSubscribe")
    return {
        job["JobName"]: {key: job.get(key) for key in keys} | {"held": "Held" in job["Reason"]}
        for job in jobs
        if job["WorkDir"] == str(run.path)
    }


def test_an_ordinary_user_sees_what_is_in_a_hidden_partition(run, train, needs):
    """Who is root for files alone, as the folders of these tests are root's."""
    needs(os.geteuid() == 0 and shutil.which("setpriv"), "another user: root, and util-linux")
    train(run)
    files = "+dac_override,+dac_read_search"
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    as_nobody += [f"--inh-caps={files}", f"--ambient-caps={files}"]
    user = replace(run, user=tuple(as_nobody))
    hidden = (LATER, "resources.all.partition=hidden")
    user.submit(*hidden)
    assert len(run.queue()) == 7
    assert run.cluster.run(*as_nobody, "squeue", "-h").stdout == ""
    assert " 0 jobs, and 6 were live" in user.submit(*hidden).stdout
    assert len(run.queue()) == 7
    assert user.skerch("cancel", run.path).stdout.startswith("7 tasks in jobs ")
    assert not run.queue()


def test_variables_of_squeue_hide_no_job(waiting):
    before, env = waiting.queue(), VARIABLES["squeue"]
    assert len(before) == 7
    said = waiting.submit(LATER, env=env).stdout
    assert "0 tasks are submitted in 0 jobs, and 6 were live" in said
    assert waiting.queue() == before
    assert [task["state"] for task in waiting.status(env=env).values()].count("pending") == 6
    refused = waiting.skerch("run", "run", env=env, check=False)
    assert "are live on the cluster" in refused.stderr


@pytest.mark.parametrize("answer", NO_LIST)
def test_what_is_no_list_of_jobs_is_no_answer(waiting, on_path, answer):
    before = waiting.queue()
    text = NO_LIST[answer].replace("SQUEUE", shutil.which("squeue"))
    env = on_path(squeue=f"#!/bin/sh\nunset SLURM_CLUSTERS\n{text}\n")
    env["SLURM_CLUSTERS"] = "devcluster,other"
    for command in ("submit", "cancel"):
        refused = waiting.skerch(command, "run", check=False, env=env)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: squeue printed what is no list of jobs (")
    assert waiting.queue() == before
    said = waiting.skerch("status", "run", env=env).stdout
    assert "Jobs are shown as far as the disk tells: squeue printed what is no list" in said
    states = [task["state"] for task in waiting.status(env=env).values()]
    assert states.count("submitted") == 6


@pytest.mark.parametrize("removed", ["", "slurm"])
def test_jobs_of_a_run_directory_that_was_removed_are_seen(run, train, removed):
    train(run)
    run.submit(LATER)
    shutil.rmtree(run.path / removed)
    run.path.mkdir(exist_ok=True)
    before = run.queue("%i")
    refused = run.submit(LATER, check=False)
    assert refused.returncode == 1
    assert "it does not tell of live jobs of this run" in refused.stderr
    assert "Cancel them, then submit again" in refused.stderr
    assert (
        "are live on the cluster"
        in run.skerch("run", run.experiment, f"run_dir={run.path}", check=False).stderr
    )
    assert run.queue("%i") == before
    if removed:
        assert run.skerch("cancel", run.path).stdout.startswith("7 tasks in jobs ")
        assert not run.queue()


def test_variables_of_sbatch_change_no_job_and_are_named(waiting, new_run, train, tmp_path):
    with new_run(tmp_path / "run") as run:
        train(run)
        done = run.submit(LATER, env=VARIABLES["sbatch"])
        assert done.stderr == (
            f"{', '.join(sorted(VARIABLES['sbatch']))} of your shell have no say: what jobs ask "
            "for stands in the cluster file and in resources.\n"
        )
        assert asked_for(run) == asked_for(waiting)
        assert len(run.queue()) == 7


def test_variables_of_scancel_keep_no_job(run, train):
    train(run)
    run.submit(LATER)
    said = run.skerch("cancel", run.path, env=VARIABLES["scancel"]).stdout
    assert said.startswith("7 tasks in jobs ")
    assert not run.queue()


def test_cancel_says_what_lives_on(run, train, on_path):
    train(run)
    run.submit(LATER)
    env = on_path(scancel="#!/bin/sh\nexit 0\n")
    refused = run.skerch("cancel", run.path, env=env, check=False)
    assert refused.returncode == 1
    words = r"error: 7 tasks of 7 tasks still live, in jobs [\d,-]+ \(PENDING\): scancel did not"
    assert re.match(words, refused.stderr)
    assert len(run.queue()) == 7


def test_variables_of_srun_start_no_second_process(trained, local, results_of):
    names = ("NTASKS", "NNODES", "NUM_NODES", "CPUS_PER_TASK", "NTASKS_PER_NODE")
    env = {f"{kind}_{name}": "2" for kind in ("SRUN", "SLURM") for name in names}
    trained.submit(env=env | {"SRUN_CPUS_PER_TASK": "64"})
    trained.wait_for_end()
    assert {task["state"] for task in trained.status().values()} == {"done"}
    assert results_of(trained.path) == results_of(local)
    for log in trained.path.glob("logs/*measure*.log"):
        assert len(re.findall(r"starts on \S+, pid", log.read_text())) == 1


SAYS = {  # what a site's sbatch prints, by a script that has the id in $job
    "a banner before the id": 'echo "Welcome to the cluster, 2026"; echo "$job"',
    "no --parsable": 'echo "Submitted batch job $job"',
    "the name of the cluster": 'echo "$job;devcluster"',
    "a banner of digits before the id": 'echo 2026; echo "$job"',
    "nothing": "true",
}


@pytest.mark.parametrize("says", SAYS)
def test_the_id_of_a_job_is_found_whatever_sbatch_prints_beside_it(run, train, on_path, says):
    train(run)
    script = f"#!/bin/sh\njob=$({shutil.which('sbatch')} --parsable) || exit\n{SAYS[says]}\n"
    said = run.submit(LATER, env=on_path(sbatch=script)).stdout
    assert "6 tasks are submitted in 4 jobs" in said  # and the one that ends the chain
    ids = re.findall(r"^job (\d+): ", said, re.MULTILINE)
    queue = [line.partition("_")[0] for line in run.queue("%i")]
    assert sorted(ids) == sorted(set(queue))
    after = run.queue("%E")
    assert sum(f"afterok:{job}" in "".join(after) for job in ids) == 3


def test_an_sbatch_that_takes_no_job_is_named_with_what_it_prints(run, train, on_path):
    train(run)
    env = on_path(sbatch="#!/bin/sh\necho 'Your allocation has expired'\n")
    refused = run.submit(LATER, env=env, check=False)
    assert refused.returncode == 1
    assert "sbatch printed no job id, but: Your allocation has expired." in refused.stderr
    assert not run.queue()


def test_what_was_submitted_before_a_limit_stays_and_the_rest_follows(run, train, on_path):
    train(run)
    sbatch = shutil.which("sbatch")
    limit = "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1"
    script = (
        f'#!/bin/sh\necho >>calls\n[ $(wc -l <calls) = 3 ] && {{ {limit}; }}\nexec {sbatch} "$@"\n'
    )
    said = run.submit(LATER, env=on_path(sbatch=script)).stdout
    words = r"sbatch failed: QOSMaxSubmitJobPerUserLimit\. Job \d+ submits 3 more tasks later\."
    assert re.search(words, said)
    before = run.queue("%i")
    assert len(before) == 4
    assert "3 tasks are submitted in 3 jobs, and 3 were live" in run.submit(LATER).stdout
    assert set(before) < set(run.queue("%i"))
    assert len(run.queue()) == 7
