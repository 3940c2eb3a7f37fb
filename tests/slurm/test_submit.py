"""submit, status, logs and cancel as a user of a cluster has them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest

MANY = ["sketch.inner=80", "sketch.block_size=1", "launcher.blocks_per_task=1"]  # 110 tasks
LATER = "resources.all.sbatch.begin=now+1hour"
AWKWARD = 'it\'s "100 %", a=b; $HOME %a'


@pytest.fixture(scope="module")
def digits(new_run, tmp_path_factory, small_overrides):
    """The small experiment, submitted twice while `logs -f` follows, and what was said."""
    folder = tmp_path_factory.mktemp("digits")
    with new_run(folder / AWKWARD, "digits") as run:
        few = [*small_overrides, "launcher.blocks_per_task=8", "cluster=devcluster"]
        first = run.submit(*few).stdout
        command = [sys.executable, "-m", "skerch", "logs", "-f", run.path]
        with (folder / "followed").open("w+") as said:
            follower = subprocess.Popen(command, stdout=said, cwd="/", env=run.cluster.env)
            try:
                second = run.submit(*few, cwd="/").stdout
                run.wait_for_end(240)
                assert follower.wait(120) == 0
            finally:
                follower.kill()
            said.seek(0)
            yield run, first, second, said.read()


@pytest.mark.slow
def test_the_digits_by_submit_are_those_of_a_local_run(digits, reference, results_of):
    run, *_ = digits
    assert {task["state"] for task in run.status().values()} == {"done"}
    assert results_of(run.path) == results_of(reference.run_dir)


@pytest.mark.slow
def test_a_submit_while_jobs_live_adds_nothing(digits):
    _, first, second, _ = digits
    assert "17 tasks are submitted in 3 jobs, and 0 were live" in first
    assert "0 tasks are submitted in 0 jobs" in second


@pytest.mark.slow
def test_every_task_has_a_log_that_is_followed_to_the_end(digits):
    run, _, _, followed = digits
    tasks = [task["id"] for task in run.status().values()]
    assert len(tasks) == 17
    for task in tasks:
        assert f" {task} done, " in (run.path / "logs" / f"{task}.log").read_text()
        assert re.search(rf"^{task}  \S+ {task} done, ", followed, re.MULTILINE)


def test_a_dry_run_shows_scripts_and_changes_nothing(run):
    said = run.submit("--dry-run", "sketch.block_size=1").stdout
    assert said.count("#!/bin/bash") == 7
    assert "# job JOB3: seigh.step-000020-test.measure-1 [0-23], after JOB1, JOB2\n" in said
    assert "#SBATCH --array=0-23%4\n" in said
    assert "#SBATCH --dependency=afterok:JOB1:JOB2\n" in said
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in said
    assert not run.path.exists()
    assert not run.queue()


def test_an_array_larger_than_slurm_takes_is_split_and_cancel_ends_all_of_it(run):
    said = run.submit(*MANY, LATER).stdout
    assert "measure-1 [0-99], after" in said
    assert "measure-1 [100-109], after" in said
    sizes = Counter(line.partition("_")[0] for line in run.queue("%i"))
    assert sorted(sizes.values()) == [1, 1, 1, 1, 1, 1, 10, 100]
    cancelled = run.skerch("cancel", run.path).stdout
    assert cancelled.startswith("116 tasks in jobs ")
    assert not run.queue()
    assert run.skerch("cancel", run.path).stdout == f"No job of {run.path} is live.\n"
    assert {task["state"] for task in run.status().values()} == {"failed"}
    assert run.status()["train"]["reason"] == "CANCELLED"


@pytest.mark.slow
def test_missing_tasks_are_submitted_alone_under_their_numbers(run, results_of):
    run.skerch("run", run.experiment, f"run_dir={run.path}", *MANY)
    results = results_of(run.path)
    for task in (3, 104):
        (run.round / "blocks" / f"block-{task:06d}.h5").unlink()
    for name in ("merged.h5", "eigh.h5", "overlap.json"):
        (run.round.parents[1] / name).unlink()
    shutil.rmtree(run.path / "logs")
    run.halt(1, 3, 4)
    said = run.submit(*MANY).stdout
    assert "measure-1 [3]\n" in said
    assert "measure-1 [104]\n" in said
    assert sorted(run.queue("%K")) == ["3", "4", "N/A", "N/A", "N/A", "N/A"]
    run.go_on(3, 4)
    run.wait_for_end()
    assert results_of(run.path) == results
    logs = [path.name for path in run.path.glob("logs/*measure*")]
    assert sorted(logs) == [f"seigh.step-000020-test.measure-1.{task}.log" for task in (104, 3)]


@pytest.mark.slow
def test_a_run_grows_by_submit_and_only_what_is_new_is_submitted(run, local, results_of):
    shutil.copytree(local, run.path)
    before = results_of(run.path)
    del before["training/parameters.h5"]
    log = (run.path / "training" / "log.jsonl").read_text()
    grown = ["training.record_steps=[10,20,30]", "training.max_steps=30"]
    said = run.submit(*grown).stdout
    jobs = re.findall(r"job \d+: (\S+)", said)
    parts = {job.partition(".")[2][:11] for job in jobs} - {"report,"}
    assert parts == {"", "step-000010", "step-000030"}
    run.wait_for_end(240)
    whole = run.path.with_name("whole")
    run.skerch("run", run.experiment, f"run_dir={whole}", *grown)
    found = results_of(run.path)
    assert found == results_of(whole)
    assert before.items() < found.items()
    assert set(log.splitlines()) < set(
        (run.path / "training" / "log.jsonl").read_text().splitlines()
    )
    assert {task["state"] for task in run.status().values()} == {"done"}
    assert run.submit().stdout.startswith(f"All tasks are done in {run.path}")


@pytest.mark.slow
def test_jobs_of_rounds_after_the_one_that_reached_the_target_end_well(run, results_of):
    asked = ["sketch.outer=20", "sketch.rounds=7", "sketch.inner=105", "sketch.probes=10"]
    asked += ["sketch.target={residual: 1.2}", "sketch.block_size=15"]
    run.submit(*asked, "launcher.blocks_per_task=1")
    run.wait_for_end(400)
    assert {task["state"] for task in run.status().values()} == {"done"}
    log = (run.path / "logs" / "seigh.step-000020-test.layout-7.log").read_text()
    assert "seigh.step-000020-test.layout-7 is not needed: the target is reached." in log
    whole = run.path.with_name("whole")
    run.skerch("run", run.experiment, f"run_dir={whole}", *asked, "launcher.blocks_per_task=9")
    assert results_of(run.path) == results_of(whole)


def test_more_steps_are_refused_while_the_training_lives(run):
    run.submit(LATER)
    refused = run.submit(LATER, "training.record_steps=[10,20]", check=False)
    assert refused.returncode == 1
    assert re.match(r"error: Job \d+, which lives, trains without some of .*10", refused.stderr)


@pytest.fixture(scope="module")
def waiting(new_run, train, tmp_path_factory):
    """A run whose jobs wait for an hour, with resources of their own."""
    with new_run(tmp_path_factory.mktemp("waiting") / "run") as run:
        train(run)
        run.submit(
            LATER,
            "resources.all.cpus=2",
            "resources.measure={throttle: 1, time: 90min}",
            "resources.merge={partition: urgent, memory: 700M, mail_type: FAIL, mail_user: me}",
        )
        yield run


def test_a_job_asks_for_what_the_cluster_file_and_the_command_line_say(waiting):
    said = waiting.cluster.run("scontrol", "--oneliner", "show", "job").stdout.splitlines()
    jobs = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in said]
    mine = [job for job in jobs if job["WorkDir"] == str(waiting.path)]
    found = {job["JobName"].rpartition(".")[2]: job for job in mine}
    common = {"NumCPUs": "2", "Requeue": "1", "KillOInInvalidDependent": "Yes"}
    by_file = {"Partition": "main", "MinMemoryNode": "1500M", "TimeLimit": "00:20:00"}
    merge = {"Partition": "urgent", "MinMemoryNode": "700M", "MailUser": "me"}
    asked = {
        "measure-1": by_file | {"TimeLimit": "01:30:00", "ArrayTaskThrottle": "1"},
        "merge": by_file | common | merge,
        "decompose": by_file | common,
    }
    for stage, words in asked.items():
        assert words.items() <= found[stage].items()
    assert found["decompose"]["Dependency"] == f"afterok:{found['merge']['JobId']}(unfulfilled)"


SILENT = {
    "squeue does not answer within 2 s.": "exec sleep 600",
    "squeue failed: slurm_load_jobs error: Unable to contact slurm controller": (
        "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    ),
}


@pytest.mark.parametrize("silence", [*SILENT, "squeue is not on PATH"])
def test_status_answers_soon_and_calls_nothing_lost_where_squeue_does_not(
    waiting, on_path, tmp_path, silence
):
    env = {"PATH": str(tmp_path)}
    if silence in SILENT:
        env = on_path(squeue="#!/bin/sh\n" + SILENT[silence])
    said = waiting.skerch("status", waiting.path, env=env).stdout
    assert f"Jobs are shown as far as the disk tells: {silence}" in said
    states = Counter(task["state"] for task in waiting.status(env=env).values())
    assert states == {"done": 2, "submitted": 6}


def test_without_slurm_submit_says_so_and_leaves_nothing_to_wait_for(run, tmp_path):
    refused = run.submit(check=False, env={"PATH": str(tmp_path)})
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: squeue is not on PATH: use a machine from which jobs")
    assert not [path for path in run.path.iterdir() if path.name != ".lock"]


def test_where_the_last_job_is_refused_the_others_are_submitted_and_it_is_said(run):
    refused = run.submit(LATER, "resources.report.partition=nowhere", check=False)
    assert refused.returncode == 1
    assert re.search(r"Invalid partition.* 0 were live, and the job that ends the", refused.stderr)
    said = run.submit(LATER).stdout
    assert re.search(r"^job \d+: seigh.report, after .*\n0 tasks are submitted in 0 jobs", said)


def test_run_refuses_while_jobs_live(waiting):
    refused = waiting.skerch("run", waiting.experiment, f"run_dir={waiting.path}", check=False)
    assert refused.returncode == 1
    assert re.match(r"error: Jobs \d+-\d+ of \S+ are live", refused.stderr)


def test_a_full_disk_is_said_before_a_job_is_submitted(run):
    run.path.joinpath("slurm").mkdir(parents=True)
    run.path.joinpath("slurm", "jobs.jsonl").symlink_to("/dev/full")
    refused = run.submit(LATER, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        f"error: {run.path}/slurm/jobs.jsonl cannot be written: No space left on device. Make room"
    )
    assert not run.queue()


def test_another_cut_into_tasks_is_refused_while_jobs_live(waiting):
    refused = waiting.submit("launcher.blocks_per_task=2", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: launcher.blocks_per_task is 2, and 3 in job ")
