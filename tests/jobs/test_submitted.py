"""What became of submitted tasks, by what squeue and sacct of Slurm 22.05 were seen to print."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace

import pytest

from skerch.jobs import pipeline
from skerch.jobs.config import save
from skerch.jobs.config.resources import resources
from skerch.jobs.launchers.slurm import journal, scheduler
from skerch.jobs.launchers.slurm.failures import failures
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.observed import Submitted, observe
from skerch.jobs.run_dir import RunDir

STEP = "seigh.step-000020-test"


@pytest.fixture
def run(reference, tmp_path):
    """A run that lacks a block and what came of it, and was submitted as jobs 11 to 14."""
    run = RunDir(shutil.copytree(reference.run_dir, tmp_path / "run"))
    step = run.step("seigh", 20, "test")
    for path in (step.merged, step.eigh, step.overlap):
        path.unlink()
    (step.measurements(1) / "blocks" / "block-000000.h5").unlink()
    for job, task, indices, after in (
        ("11", "measure-1", (0, 1), ()),
        ("12", "merge", None, ("11",)),
        ("13", "decompose", None, ("12",)),
        ("14", "analyze", None, ("13",)),
    ):
        token = scheduler.new_token(run.path)
        submission = Submission(token, "seigh", f"{STEP}.{task}", indices, after=after)
        journal.record(run, replace(submission, when=time.time()))
        journal.record(run, replace(submission, job=job))
    return run


def heredoc(lines):
    """Shell that prints lines."""
    return "\n".join(["cat <<'END'", *lines, "END"])


def squeue(rows, codes=(), header="F|K|T|r|N|j|Z|k", after=""):
    """Shell that answers as squeue: rows by the format `MARK|%F|…|MARK`, or exit codes."""
    listed = [header, *("|".join(row) for row in rows)]
    return f"""for form; do :; done
case $form in
*%F*)
mark=${{form%%|*}}
sed "s/^/$mark|/; s/\\$/|$mark/" <<'END'
{chr(10).join(listed)}
END
{after};;
*)
{heredoc(codes)}
esac"""


def stand_in(path, text):
    """A program."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def asked(run, tmp_path, monkeypatch, skerch):
    """What `status` says, by task, of what squeue and sacct print (None: they fail)."""
    tokens = {s.job: s.token for s in journal.submissions(run)}
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def ask(queue=(), accounts=None):
        rows = [
            (*fields[:5], "name", "/folder", tokens.get(fields[0], "")) for fields in queue or ()
        ]
        codes = [f"{job:<20}{index:<20}{code:<20}" for job, index, *_, code in queue or ()]
        stand_in(tmp_path / "squeue", squeue(rows, codes) if queue is not None else "exit 1")
        said = "exit 1" if accounts is None else heredoc(accounts)
        stand_in(tmp_path / "sacct", said)
        found = json.loads(skerch("status", run.path, "--json")[1])
        (method,) = found["methods"]
        return found["scheduler"], {
            task["id"].removeprefix(f"{STEP}."): task for task in method["tasks"]
        }

    return ask


def has(task, **expected):
    return expected.items() <= task.items()


FAILED = [
    ("11", "0", "FAILED", "NonZeroExitCode", "n1", "35072"),
    ("11", "1", "COMPLETED", "None", "n2", "0"),
    ("12", "N/A", "CANCELLED", "DependencyNeverSatisfied", "", "0"),
    ("13", "N/A", "PENDING", "Dependency", "", "0"),
]


def test_who_failed_and_whom_that_takes_down(asked, run, skerch):
    silence, status = asked(FAILED)
    assert silence is None
    failed = {"state": "failed", "job": "11_0", "exit_code": "137:0", "node": "n1"}
    assert has(status["measure-1.0"], reason="killed by SIGKILL (signal 9)", **failed)
    assert has(status["measure-1.1"], state="done", job="11_1")
    reason = f"needs {STEP}.measure-1.0, which failed"
    assert has(status["merge"], state="failed", reason=reason, job="12")
    assert has(status["decompose"], state="pending", reason=reason, job="13")
    assert has(status["analyze"], state="lost", reason=reason, job="14")
    table = skerch("status", run.path)[1]
    assert f"{STEP}.measure-1.0 failed (job 11_0): killed by SIGKILL (signal 9)\n" in table
    assert (
        f"  next: python -m skerch submit {run.path}  # with a larger resources.measure.mem"
        in table
    )
    assert f"3 more tasks need {STEP}.measure-1.0, which failed\n" in table


def test_several_tasks_in_a_record_are_no_answer(asked):
    for index in ("0-1", "[0-1%4]", ""):
        silence, _ = asked([("11", index, "PENDING", "Resources", "", "0")])
        assert "no list of jobs" in silence


def test_what_the_log_says_is_the_reason(asked, run):
    log = run.task_log(f"{STEP}.measure-1.0")
    start = "2100-01-01T00:00:00+00:00 job 11 starts on n1\n"
    log.write_text(f"{start}error: parameters.h5 is missing.\nsrun: error: n1: task 0: Exited\n")
    assert has(asked(FAILED)[1]["measure-1.0"], reason="parameters.h5 is missing.")
    shell = "/spool/job00011/slurm_script: line 25: 319 Killed      srun --unbuffered python"
    log.write_text(f"{start}batch 3\n{shell}\n")
    assert has(asked(FAILED)[1]["measure-1.0"], last_line="batch 3")
    log.write_text(f"{start}slurmstepd: error: StepId=11.0 exceeded memory limit (2 > 1)\n")
    status = asked(FAILED)[1]["measure-1.0"]
    assert has(
        status,
        reason="out of memory",
        next=f"{STEP}.measure-1.0 ran out of memory; set re"
        "sources.measure.memory, as in resources.measure.memory=16G.",
    )


def test_what_does_not_resume_is_given_more_time(asked, run):
    done = [("11", "0", "TIMEOUT", "None", "n1", "0"), ("12", "N/A", "TIMEOUT", "None", "n1", "0")]
    again = f"python -m skerch submit {run.path}"
    assert has(asked(done[:1])[1]["measure-1.0"], next=again)
    step = run.step("seigh", 20, "test")
    other = run.step("seigh", 60, "test").measurements(1) / "blocks" / "block-000000.h5"
    shutil.copy(other, step.measurements(1) / "blocks")
    key = "resources.merge.time"
    words = f"{STEP}.merge had too little time; set {key}, as in {key}=4h."
    assert has(asked(done)[1]["merge"], reason="TIMEOUT", next=words)


def test_the_last_job_of_a_chain_is_named_where_it_submits_a_task_again(asked, run, skerch):
    last = journal.submissions(run)[-1]
    journal.record(run, replace(last, token="last", task="seigh.report", job=None))
    journal.record(run, replace(last, token="last", job="15"))
    waits = ("15", "N/A", "PENDING", "Dependency", "", "0")
    heals, again = "job 15 submits it again", f"python -m skerch submit {run.path}"
    killed, cancelled = FAILED[0], ("11", "0", "CANCELLED", "None", "n1", "15")
    assert asked([killed, waits])[1]["measure-1.0"]["next"].startswith(heals)
    assert has(asked([cancelled, waits])[1]["measure-1.0"], next=again)
    log = run.task_log("seigh.report")
    log.write_text("2100-01-01T00:00:00+00:00 job 15 starts on n1\nerror: sbatch failed: No.\n")
    words = "seigh.report, which submits what is left, failed: sbatch failed: No.\n"
    for row, is_told in ((waits, False), (("15", "N/A", "FAILED", "None", "n1", "256"), True)):
        asked([killed, row])
        assert (words in skerch("status", run.path)[1]) == is_told
    # Killed twice, it was memory, of which there may be more.
    with_memory = replace(run.load(), resources={"all": {"memory": "1000M"}})
    save(with_memory, run.hessian_config("seigh"))
    step = f"{STEP}.measure-1"
    second = Submission("second", "seigh", step, (0, 1), because={f"{step}.0": "killed"})
    journal.record(run, replace(second, asked=1000, memory=1000, when=time.time()))
    journal.record(run, replace(second, job="16"))
    killed = ("16", *killed[1:])
    assert asked([killed, waits])[1]["measure-1.0"]["next"].startswith(heals)
    assert asked([killed])[1]["measure-1.0"]["next"] == f"{again}  # asks for 2000 MiB"


def test_a_job_that_waits_for_ever_is_no_live_one(asked):
    stuck = ("11", "0", "PENDING", "launch failed requeued held", "", "0")
    assert has(asked([stuck])[1]["measure-1.0"], state="failed", exit_code=None)


def test_what_lives_says_where_or_why_not(asked, run, skerch):
    _, status = asked([("11", "0", "RUNNING", "None", "n3", "0"), *FAILED[3:]])
    assert has(status["measure-1.0"], state="running", reason="n3")
    assert has(status["decompose"], state="pending", job="13")
    waiting = [(job, "N/A", "PENDING", "Dependency", "", "0") for job in ("12", "13", "14")]
    asked([("11", "0", "PENDING", "Resources", "", "0"), *waiting])
    table = skerch("status", run.path)[1]
    assert "1 task pending (Resources): job 11" in table
    assert "3 tasks pending (Dependency): jobs 12-14" in table


def test_accounting_knows_what_squeue_forgot_but_nothing_lives_by_its_word_alone(asked):
    accounts = ["11_0|TIMEOUT|n1|0:15", "12|CANCELLED by 0|None assigned|0:0", "13|RUNNING|n1|0:0"]
    accounts += ["14|||", "11_[2-9%4]|PENDING|None assigned|0:0"]
    _, status = asked([], accounts)
    assert has(status["measure-1.0"], state="failed", reason="TIMEOUT", exit_code="0:15")
    assert has(status["decompose"], state="lost")
    accounts[-1] = "14|PENDING|None assigned|0:0"
    silence, status = asked(None, ["11_[0-1%4]|PENDING|None assigned|0:0", *accounts[1:]])
    assert silence is None
    assert has(status["measure-1.0"], state="pending")
    assert has(status["decompose"], state="running")


WAITED = ("11", "1", "COMPLETED", "None", "n2", "0")


@pytest.mark.parametrize(
    ("queue", "accounts"),
    [
        ([WAITED], None),  # beside one that began: the other is in no list
        ([("11", "N/A", "CANCELLED", "Resources", "", "0")], None),  # the last that waited
        ([], ["11_1|COMPLETED|n2|0:0", "11_[0-1%4]|CANCELLED by 0|None assigned|0:0"]),
        ([], ["11_1|COMPLETED|n2|0:0"]),
    ],
)
def test_an_element_that_was_cancelled_while_it_waited_stays_so(asked, run, queue, accounts):
    cancelled = asked(queue, accounts)[1]["measure-1.0"]
    assert has(cancelled, state="failed", reason="CANCELLED", job="11_0")
    known, config = observe(run, 2.0), run.load()
    found = failures(run, 3, pipeline.tasks(config), known, resources(config))
    assert found.hopeless == {f"{STEP}.measure-1.0": f"{STEP}.measure-1.0 was cancelled"}
    began = "2100-01-01T00:00:00+00:00 job 11 starts on n1\n"
    run.task_log(f"{STEP}.measure-1.0").write_text(began)
    assert asked([WAITED], ["11_1|COMPLETED|n2|0:0"])[1]["measure-1.0"]["state"] == "lost"


def test_errors_that_differ_in_figures_are_alike_and_are_told_with_them(run):
    shutil.rmtree(run.step("seigh", 20, "test").measurements(1) / "blocks")
    (array, *_), elements, error = journal.submissions(run), {}, "ValueError: 1.5 is above 1.25."
    for index, words in enumerate((error, "ValueError: 2.5 is above 1.25.")):
        task, time = f"{STEP}.measure-1.{index}", "2100-01-01T00:00:00+00:00"
        log = f"{time} job 11 starts on n1\n{time} {task} failed, 1.0 s: {words}\n"
        run.task_log(task).write_text(log)
        elements[array.token, index] = scheduler.Element(f"11_{index}", "FAILED")
    known, config = Submitted(journal.submissions(run), elements), run.load()
    found = failures(run, 3, pipeline.tasks(config), known, resources(config))
    ((first, other),) = found.alike()
    assert (first.reason, other.id) == (error, f"{STEP}.measure-1.1")


def test_nothing_is_lost_that_could_not_be_asked_for(asked, run, skerch):
    silence, status = asked(None)
    assert silence == "squeue failed: exit status 1."
    assert has(status["measure-1.0"], state="submitted", job="11_0")
    assert has(status["merge"], state="submitted", reason=None)
    assert "as far as the disk tells: squeue failed" in skerch("status", run.path)[1]


def test_a_job_that_was_refused_and_is_listed_as_failed_was_no_attempt(run, monkeypatch):
    journal.record(run, Submission("refused", "seigh", f"{STEP}.merge", None))
    listed = {("refused", None): scheduler.Element("15", "FAILED", exit_code="0:1")}
    monkeypatch.setattr(scheduler, "elements", lambda *_: listed)
    assert observe(run, 2.0).latest[f"{STEP}.merge"].job == "12"


def test_a_torn_line_of_the_journal_hides_no_other(run):
    before = journal.submissions(run)
    with run.jobs.open("a") as file:
        file.write('\n{"token": "skerch-')
    journal.record(run, Submission("another", "seigh", "train", None))
    assert [s.token for s in journal.submissions(run)] == [*(s.token for s in before), "another"]
