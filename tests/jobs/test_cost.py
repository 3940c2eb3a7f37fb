"""What tasks used, what a run cost by stage, and what is asked for next time."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from datetime import datetime

import pytest

from skerch.jobs.commands import cost as tables
from skerch.jobs.config import ConfigError, load
from skerch.jobs.config.resources import is_automatic, resources, taken
from skerch.jobs.launchers.slurm import accounting, cost
from skerch.jobs.launchers.slurm.accounting import Start
from skerch.jobs.launchers.slurm.cost import Attempt, Submitted, by_stage, joined, proposal
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.scheduler import Element
from skerch.jobs.pipeline import Task, task_log
from skerch.jobs.run_dir import RunDir

TASK = Task("train", "train", {}, (), ())


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


def test_a_record_has_the_memory_and_processor_time_of_its_own_task(run):
    with task_log.recorded(run, TASK):
        held = bytearray(200 << 20)
        begun = time.process_time()
        while time.process_time() < begun + 0.5:
            pass
        del held
    with task_log.recorded(run, TASK):
        subprocess.run([sys.executable, "-c", "print(sum(range(5_000_000)))"], check=True)
        time.sleep(0.5)
    first, second = task_log.attempts(run)
    assert first["peak"] > 200
    assert second["peak"] < first["peak"] - 190  # though one process did both
    assert first["cpu"] == pytest.approx(0.5, abs=0.2)  # to fill 200 MiB takes some of it
    assert 0.02 < second["cpu"] < second["seconds"]  # of its child
    assert task_log.records(run) == {"train": second}


def test_a_record_says_where_it_was_made_and_with_what(run, monkeypatch):
    def placed(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with task_log.recorded(run, TASK):
            pass
        return tuple(task_log.attempts(run)[-1][key] for key in ("node", "job", "cpus", "gpus"))

    for name in {*os.environ}:
        if name.startswith(("SLURM", "CUDA")):
            monkeypatch.delenv(name)
    assert placed() == (socket.gethostname(), None, len(os.sched_getaffinity(0)), 0)
    slurm = {"SLURMD_NODENAME": "n2", "SLURM_JOB_ID": "14", "SLURM_CPUS_PER_TASK": "8"}
    assert placed(**slurm, SLURM_GPUS_ON_NODE="2") == ("n2", "14", 8, 2)
    array = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert placed(**array, CUDA_VISIBLE_DEVICES="0") == ("n2", "12_3", 8, 1)
    assert placed(CUDA_VISIBLE_DEVICES="NoDevFiles")[-1] == 0


def test_a_record_of_an_earlier_version_is_read_and_what_is_no_record_is_left_out(run):
    run.logs.mkdir(parents=True)
    old = {"id": "train", "stage": "train", "started": 1.0, "seconds": 2.0, "error": None}
    others = [[1], old | {"seconds": "2"}, old | {"id": [3]}, old | {"cpu": {}}, {"id": "train"}]
    lines = [json.dumps(line) for line in (old, *others, old | {"peak": 7})]
    run.task_records.write_text("\n".join([*lines[:1], '{"id": "tra', *lines[1:]]))
    lacks = dict.fromkeys(("made", "cpu", "node", "job", "cpus", "gpus"))
    assert task_log.attempts(run) == [old | {"peak": p} | lacks for p in (None, 7)]


# What sacct of Slurm 22.05 printed of a job that was requeued, of two that were killed for lack of
# memory, of one that never started and of one that runs; and of a job with GPUs, as its manual has.
PRINTED = """
4|REQUEUED|2026-11-28T15:27:57|12|00:00.005||1|billing=1,cpu=1,mem=500M,node=1
4.batch|CANCELLED|2026-11-28T15:27:57|12|00:00.002|12100K||cpu=1,mem=500M,node=1
4.0|CANCELLED|2026-11-28T15:27:57|12|00:00.002|4848K||cpu=1,mem=500M,node=1
4|COMPLETED|2026-11-28T15:28:20|1|00:00.004||1|billing=1,cpu=1,mem=500M,node=1
4.batch|COMPLETED|2026-11-28T15:28:20|1|00:00.002|12200K||cpu=1,mem=500M,node=1
2_0|FAILED|2026-11-28T15:25:23|1|00:00.633||UNLIMITED|billing=1,cpu=1,mem=100M,node=1
2_0.batch|FAILED|2026-11-28T15:25:23|1|00:00.015|12488K||cpu=1,mem=100M,node=1
2_0.0|CANCELLED by 0|2026-11-28T15:25:23|1|00:00.617|218108K||cpu=1,mem=100M,node=1
2_1|OUT_OF_MEMORY|2026-11-28T15:25:23|61|1-02:03:04.674||UNLIMITED|billing=1,cpu=1,mem=1.50G
9|CANCELLED|2026-11-28T15:34:53|0|00:00:00||20|
10|RUNNING|2026-11-28T15:34:53|60|00:00:00||20|billing=1,cpu=1,mem=500M,node=1
11|COMPLETED|2026-11-28T15:34:53|60|08:00||20|billing=8,cpu=8,gres/gpu:a100=2,gres/gpu=2,mem=64G
"""
BEGAN = datetime(2026, 11, 28, 15, 27, 57).timestamp()


def start(job, when=100.0, seconds=60.0, **kinds):
    """A start of a job of two CPUs and 1000 MiB, and how it ended."""
    own = {"state": "COMPLETED", "cpu": 30.0, "peak": 400, "cpus": 2, "gpus": 0}
    return {job: [Start(when=when, seconds=seconds, memory=1000, time=20, **(own | kinds))]}


def record(task, started=105.0, **kinds):
    """A task's record in job 12."""
    own = {"seconds": 50.0, "error": None, "peak": 300, "cpu": 25.0, "node": "n1", "job": "12"}
    own |= {"cpus": 2, "gpus": 0}
    return {"id": task, "stage": cost.stage_of(task), "started": started} | own | kinds


def submitted(task="train", job="12", when=90.0, memory=1000, **kinds):
    own = {"asked": 1000, "asked_time": 20, "time": 20, "cpus": 2}
    return Submission(
        f"t{job}", "seigh", task, None, memory=memory, job=job, when=when, **own | kinds
    )


def test_sacct_tells_of_each_start_of_a_job_that_has_ended():
    found = accounting.parsed(line.split("|") for line in PRINTED.strip().splitlines())
    assert found.keys() == {"4", "2_0", "2_1", "11"}
    first, second = found["4"]
    assert first == Start("REQUEUED", BEGAN, 12.0, 0.005, 12, 1, 0, 500, 1)
    assert (second.when, second.state) == (BEGAN + 23, "COMPLETED")
    assert (found["2_0"][0].peak, found["2_0"][0].time) == (213, None)
    assert (found["2_1"][0].cpu, found["2_1"][0].memory) == (93784.674, 1536)
    assert (found["11"][0].gpus, found["11"][0].cpus, found["11"][0].memory) == (2, 8, 65536)
    assert accounting.parsed([["12", "COMPLETED", "n1", "0:0"], ["sacct: error"]]) == {}


@pytest.mark.parametrize(
    ("task", "stage"),
    [
        ("train", "train"),
        ("my.name.step-000020-test.measure-1.12", "measure"),
        ("seigh.step-000020-test.range_finder-2", "range_finder"),
        ("seigh.report", "report"),
    ],
)
def test_a_tasks_id_has_its_stage(task, stage):
    assert cost.stage_of(task) == stage


def test_a_job_is_its_task_and_what_it_took_around_it():
    (found,) = joined([record("train")], [submitted()], start("12"))
    assert (found.done, found.seconds, found.cpu, found.peak) == (True, 60.0, 30.0, 400)
    assert (found.cpus, found.memory, found.time) == (2, 1000, 20)


def test_without_accounting_the_record_tells_and_of_a_local_run_nothing_was_asked():
    (found,) = joined([record("train")], [submitted()], {})
    assert (found.seconds, found.cpu, found.peak, found.memory) == (50.0, 25.0, 300, 1000)
    (found,) = joined([record("train", job=None)], [], {})
    assert (found.seconds, found.cpus, found.memory, found.time) == (50.0, None, None, None)


def test_who_was_killed_before_it_wrote_a_record_is_an_attempt_of_its_own():
    starts = {"12": [*start("12", 100.0, 20.0, state="REQUEUED")["12"], *start("12", 200.0)["12"]]}
    killed, found = joined([record("train", 205.0)], [submitted()], starts)
    assert (killed.task, killed.done, killed.seconds, killed.peak) == ("train", False, 20.0, 400)
    assert (found.done, found.seconds) == (True, 60.0)
    for state, lack in (("OUT_OF_MEMORY", "memory"), ("TIMEOUT", "time"), ("NODE_FAIL", None)):
        (killed,) = joined([], [submitted()], start("12", state=state))
        assert (killed.stage, killed.lack) == ("train", lack)


def test_of_several_tasks_in_a_job_each_has_what_it_recorded():
    parts = {f"seigh.s.{stage}": [1000, 1000, 20, 20] for stage in ("merge", "decompose")}
    both = submitted("seigh.s.decompose", parts=parts)
    merge, decompose = record("seigh.s.merge", 105.0), record("seigh.s.decompose", 160.0)
    first, second = joined(
        [merge, decompose], [both], start("12", seconds=120.0, cpu=60.0, peak=200)
    )
    assert (first.seconds, first.cpu, first.peak) == (50.0, 25.0, 300)
    assert (second.seconds, second.cpu, second.peak) == (70.0, 35.0, 300)
    first, second = joined([merge], [both], start("12", state="OUT_OF_MEMORY"))
    assert (first.stage, first.lack) == ("merge", None)
    assert (second.stage, second.seconds, second.lack) == ("decompose", 10.0, "memory")


def test_a_job_id_that_another_had_before_is_not_mixed_up():
    earlier, later = record("train", 5.0, peak=7), record("train", 105.0)
    (now, before) = joined([earlier, later], [submitted(when=0.0), submitted(when=90.0)], {})
    assert (before.peak, now.peak) == (7, 300)


def test_a_stages_cost_is_of_all_attempts_in_hours_and_percent():
    attempts = [
        Attempt("a.measure-1.0", "measure", True, 1800.0, 900.0, 512, 2, 1, 1024, 60),
        Attempt("a.measure-1.0", "measure", False, 3600.0, None, None, 2, 1, 2048, 60),
        Attempt("a.measure-1.1", "measure", True, 1800.0, 2700.0, 700, 2, 1, 1024, 60),
        Attempt("train", "train", True, 60.0, 30.0, 100),
        Attempt("a.measure-1.2", "measure", memory=1024, lack="memory"),
    ]
    train, measure = by_stage(attempts)
    assert (measure.tasks, measure.attempts) == (2, 3)
    assert (measure.cpu_hours, measure.cpu_hours_asked, measure.cpu_efficiency) == (1.0, 4.0, 50.0)
    assert (measure.gpu_hours, measure.memory, measure.memory_asked) == (2.0, 700, 2048)
    assert (measure.seconds, measure.seconds_asked, measure.time_efficiency) == (3600, 3600, 100)
    assert (train.cpu_hours, train.cpu_efficiency, train.memory_asked) == (1 / 120, None, None)
    shown = dict(tables.columns([train, measure], asked=False))
    assert (shown["GPU\nhours"], shown["GiB"]) == (["", "2"], ["0.0977", "0.684"])


@pytest.mark.parametrize(
    ("attempts", "asked"),
    [
        ([(True, 60.0, 300, 1000, None)], ("500M", "5min")),  # 424 MiB, 1.5 min
        ([(True, 1201.0, 1000, None, None)], ("1300M", "31min")),
        ([(False, 60.0, 300, 1000, None)], None),
        ([(True, 60.0, 300, 1000, None), (False, 9.0, None, 800, "memory")], ("800M", "5min")),
        ([(True, 1.0, 300, 1000, None), (False, 9.0, None, 10, "time")], ("500M", "20min")),
    ],
)
def test_what_is_proposed_for_a_stage(attempts, asked):
    found = proposal(
        Attempt("train", "train", done, seconds, 1.0, peak, 1, 0, memory, 20, lack)
        for done, seconds, peak, memory, lack in attempts
    )
    assert found == ({"train": dict(zip(("memory", "time"), asked, strict=True))} if asked else {})


def test_a_task_that_never_had_enough_is_given_twice_as_much():
    done = Attempt("m.measure-1.0", "measure", True, 60.0, 1.0, 300, 1, 0, 1000, 20)
    lacked = Attempt("m.measure-1.1", "measure", memory=1000, time=20, lack="memory")
    assert proposal([done, lacked])["measure"]["memory"] == "2000M"


def test_what_was_too_little_is_known_without_accounting(run):
    history = [submitted(job="12", memory=500), submitted(job="13", memory=1000)]
    out_of_memory = {("t13", None): Element("13", "OUT_OF_MEMORY")}
    found = cost.attempts(run, Submitted(history, out_of_memory), {})
    assert [(a.memory, a.lack, a.seconds) for a in found] == [
        (1000, "memory", None),
        (500, "memory", None),
    ]
    parts = {f"seigh.s.{stage}": [1000, 1000, 20, 20] for stage in ("merge", "decompose")}
    chain = Submitted([submitted("seigh.s.decompose", "13", parts=parts)], out_of_memory)
    assert [a.stage for a in cost.attempts(run, chain, {})] == ["merge"]  # the other never began
    run.logs.mkdir(parents=True)
    run.task_log("train").write_text("2100-01-01T00:00:00+00:00 train starts on n1\noom-kill\n")
    assert [a.memory for a in cost.attempts(run, Submitted(history, {}), {})] == [1000, 500]


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("problem: {name: digits_mlp}\ncluster: devcluster\nresources: auto\n")
    return path


def test_auto_asks_for_the_proposal_of_stages_that_have_one(experiment):
    config = load(experiment, ["resources.train.memory=1G"])
    assert is_automatic(config)
    asked = {"memory": "700M", "time": "7min"}
    config = taken(config, {"measure": asked, "train": asked})
    assert config.resources["auto"] == {"measure": asked, "train": {"time": "7min"}}
    assert not is_automatic(config)
    wanted = resources(config)
    assert (wanted["measure"].memory, wanted["measure"].minutes) == (700, 7)
    assert (wanted["layout"].memory, wanted["layout"].minutes) == (1500, 20)  # by the cluster file
    assert (wanted["train"].memory, wanted["train"].minutes) == (1024, 7)  # what the user said


def test_auto_stays_within_what_else_is_asked(experiment):
    limits = ["resources.measure.memory_limit=2G", "resources.measure.grace=600"]
    by_cpu = ["resources.train.memory=null", "resources.train.sbatch.mem-per-cpu=1G"]
    config = load(experiment, [*limits, *by_cpu])
    asked = {"memory": "3000M", "time": "5min"}
    wanted = resources(taken(config, {"measure": asked, "train": asked}))
    assert (wanted["measure"].memory, wanted["measure"].minutes) == (2048, 11)
    assert (wanted["train"].memory, wanted["train"].minutes) == (None, 5)


def test_auto_is_a_word_on_the_command_line_too(experiment):
    assert not is_automatic(load(experiment, ["resources.auto=false"]))
    assert is_automatic(load("digits", ["resources=auto"]))
    with pytest.raises(ConfigError, match=r"resources\.auto is 'yes'; it must be true or false"):
        load("digits", ["resources.auto=yes"])


def test_status_and_report_tell_of_a_local_run(reference, skerch):
    said = json.loads(skerch("status", reference.run_dir, "--json")[1])
    costs = {each["stage"]: each for each in said["cost"]}
    assert costs.keys() == said["proposed"].keys()
    train = costs["train"]
    assert (train["tasks"], train["attempts"], train["cpu_hours_asked"]) == (1, 1, None)
    assert 0 < train["cpu_hours"] < 1
    assert 50 < train["memory"] < 4000
    assert "longest,\n" in re.sub(" +", "", skerch("status", reference.run_dir)[1])
