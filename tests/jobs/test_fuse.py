"""Which tasks share a job, by the graph of every method, and what becomes of each of them."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace

import pytest

from skerch.jobs import pipeline
from skerch.jobs.config.resources import resources
from skerch.jobs.launchers.slurm import inside, journal
from skerch.jobs.launchers.slurm.chain import job_script, line
from skerch.jobs.launchers.slurm.jobs import after, missing_jobs
from skerch.jobs.launchers.slurm.observed import Submitted
from skerch.jobs.launchers.slurm.programs import SlurmError
from skerch.jobs.launchers.slurm.raised import next_request
from skerch.jobs.launchers.slurm.scheduler import Element
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import bind
from skerch.jobs.stages import layout
from skerch.jobs.stages.context import Context

ONE = ["training.record_steps=[60]", "launcher.blocks_per_task=16"]
ALONE = ["launcher.fuse=false", "sketch.rounds=1"]
KFAC = ["method=kfac", "kronecker.part_size=30", "launcher.blocks_per_task=2"]
EKFAC = ["method=ekfac", "kronecker.part_size=30", *ONE]
NEAREST = ["method=nearest", "kronecker.iterations=2", "kronecker.partitions=2", *ONE]
STARTED = ["sketch.start=previous", "launcher.blocks_per_task=16"]
SIZES = "all: {memory: 1G, time: 1h}\nmerge: {memory: 4G}\nmeasure: {time: 2h, throttle: 3}"
LAST, HESSIAN = "merge decompose analyze", "seigh.step-000060-test"


@pytest.fixture
def planned(small):
    """A function: the config with overrides, and the jobs of its tasks, beside what is `known`."""

    def plan(*overrides, known=None):
        config = small(*overrides)
        run = RunDir(config.run_dir)
        return config, missing_jobs(run, config, known or Submitted([], {}), resources(config))[0]

    return plan


def told(jobs):
    """The stages of each job of the training and of the last Hessian, and how many at once."""
    hessians = [job.tasks[0].id.split(".")[1:2] for job in jobs]
    return [
        " ".join(task.stage for task in (*(each.tasks[0] for each in job.before), job.tasks[0]))
        + (f" x{len(job.tasks)}" if len(job.tasks) > 1 else "")
        for job, hessian in zip(jobs, hessians, strict=True)
        if hessian in ([], hessians[-1])
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (ALONE, ["train", "layout", "measure x5", *LAST.split()]),
        (["sketch.rounds=1"], ["train", "layout measure x5", LAST]),
        ([], ["train", "layout measure x4", "range_finder layout", "measure x2", LAST]),
        (ONE, [f"train layout measure range_finder layout measure {LAST}"]),
        (ONE[1:], ["train", f"layout measure range_finder layout measure {LAST}"]),
        (["sketch.rounds=8", *ONE], [f"train rounds {LAST}"]),
        (STARTED, [f"range_finder layout measure range_finder layout measure {LAST}"]),
        (["method=lanczos"], ["train", "lanczos"]),
        (["method=trace", ONE[0]], ["train", "trace"]),
        (["method=density", ONE[0]], ["train", "density"]),
        (KFAC, ["train", "layers factors x2", "factors_merge eigenbasis", "assess"]),
        (
            EKFAC,
            [
                "train layers factors factors_merge",
                "eigenbasis correction correction_merge",
                "assess",
            ],
        ),
        (
            NEAREST,
            [
                *("train layers factors", "factors_merge x2", "factors", "factors_merge x2"),
                *("eigenbasis x2", "assess"),
            ],
        ),
    ],
)
def test_tasks_that_would_only_wait_for_each_other_share_a_job(planned, overrides, expected):
    assert told(planned(*overrides)[1]) == expected


def test_what_asks_for_another_node_is_a_job_of_its_own(planned):
    _, jobs = planned("cluster=gpu", "sketch.rounds=2")
    expected = ["layout measure x4", "range_finder", "layout measure x2", LAST]
    assert told(jobs) == ["train", *expected]
    assert told(planned("resources.decompose.setup=:", *ONE)[1])[1:] == ["decompose", "analyze"]


def test_a_job_asks_for_the_most_that_its_tasks_need_and_keeps_what_each_needs(planned, tmp_path):
    (tmp_path / "cluster.yaml").write_text(SIZES)
    config, jobs = planned(f"cluster={tmp_path / 'cluster.yaml'}", *ONE[1:])
    *_, job = jobs
    found = job.submission(tmp_path, "seigh", ["7"])
    assert (found.memory, found.time) == (4096, 120)
    assert found.task == f"{HESSIAN}.analyze"
    assert len(found.before) == 7
    own = found.own(f"{HESSIAN}.measure-1.0")
    assert (own.memory, own.asked, own.time, own.asked_time) == (1024, 1024, 120, 120)
    known = Submitted(
        [replace(found, job="8")], {(found.token, None): Element("8", "OUT_OF_MEMORY")}
    )
    wanted, missing = resources(config), set(found.elements)

    def memory(stage):
        tasks = [task for task in job.everything if task.stage == stage]
        return next_request(RunDir(config.run_dir), tasks, missing, known, wanted[stage]).memory

    stages = {task.stage: memory(task.stage) for task in job.everything}
    assert stages.pop("layout") == 8192  # which it came to, and then lacked memory
    assert stages.pop("merge") == 4096
    assert set(stages.values()) == {1024}


def test_a_script_has_a_step_a_task_and_the_first_that_fails_ends_it(planned):
    config, jobs = planned("sketch.rounds=1", "cluster=devcluster", "resources.measure.requeues=3")
    run = RunDir(config.run_dir)
    array, chain = jobs[-2:]
    submission = array.submission(run.path, "seigh", after(array, {"train": "1"}))
    assert line(submission).endswith("measure-1 [0-4] (first layout-1), after 1")
    first, last = (s for s in job_script(run, array, submission).split("\n") if "srun" in s)
    log = run.task_log(f"{HESSIAN}.layout-1")
    assert f" --output {log} " in first
    assert first.endswith(f" --requeues 3 --grace 90 --shared >>{log} 2>&1 || exit")
    assert f" --output {run.logs / HESSIAN}.measure-1.%a.log " in last
    assert last.endswith(f" {HESSIAN}.measure-1 --name seigh --requeues 3 --grace 90 --first 0")
    submission = chain.submission(run.path, "seigh", [])
    text = job_script(run, chain, submission)
    assert f"#SBATCH --output={run.task_log(f'{HESSIAN}.merge')}\n" in text
    assert text.count(" || exit\n") == 2
    assert text.count("--requeues 30 ") == 3
    assert "--shared" not in text


@pytest.fixture
def submitted(planned):
    """A function: what becomes of tasks of one job, of whose elements Slurm says this."""

    def submit(*states, overrides=ONE):
        config, jobs = planned(*overrides)
        run = RunDir(config.run_dir)
        job = jobs[0] if len(states) == 1 else jobs[-2]
        given = replace(job.submission(run.path, "seigh", []), job="7", when=1.0)
        indices = [None] if len(states) == 1 else range(len(states))
        elements = {
            (given.token, i): Element("7" if i is None else f"7_{i}", state, exit_code="1:0")
            for i, state in zip(indices, states, strict=True)
        }
        known = Submitted([given], elements)

        def states_of(done):
            tasks = pipeline.tasks(config)
            missing = [task.id for task in tasks if task.stage not in done]
            return {t.id.removeprefix(f"{HESSIAN}."): known.state(run, t, missing) for t in tasks}

        return states_of

    return submit


def test_of_a_job_the_task_that_runs_is_the_first_that_is_missing(submitted):
    found = submitted("RUNNING")({"train", "layout"})
    assert found["layout-2"].state == "done"
    assert found["measure-1.0"].state == "running"
    assert found["merge"].state == "pending"
    assert found["merge"].reason == "its turn within its job"
    assert {task.state for task in submitted("PENDING")(()).values()} == {"pending"}


def test_of_a_job_the_task_that_failed_is_the_first_that_is_missing(submitted):
    found = submitted("OUT_OF_MEMORY")({"train", "layout", "measure", "range_finder"})
    assert (found["merge"].state, found["merge"].cause) == ("failed", "memory")
    assert found["merge"].exit_code == "1:0"
    later = found["decompose"]
    assert (later.state, later.cause, later.exit_code) == ("failed", None, None)


def test_what_each_element_does_first_lives_while_one_does(submitted):
    states = ["FAILED", "PENDING", "RUNNING", "FAILED", "FAILED"]
    found = submitted(*states, overrides=["sketch.rounds=1"])({"train"})
    assert found["layout-1"].state == "running"
    assert found["measure-1.0"].exit_code is None
    assert [found[f"measure-1.{i}"].state for i in range(4)] == [
        *("failed", "pending", "pending", "failed")
    ]
    states[1:3] = ["FAILED"] * 2
    found = submitted(*states, overrides=["sketch.rounds=1"])({"train"})
    assert found["layout-1"].state == "failed"


def test_a_live_task_and_those_that_wait_for_it_are_no_job_of_others(planned):
    _, jobs = planned("sketch.rounds=1")
    array = replace(jobs[-2].submission(RunDir("run").path, "seigh", []), job="7")
    live = {(array.token, index): Element(f"7_{index}", "RUNNING") for index in range(4)}
    known = Submitted([array], {**live, (array.token, 4): Element("7_4", "FAILED")})
    _, jobs = planned("sketch.rounds=1", known=known)
    assert told(jobs) == ["train", "measure", LAST]


def test_a_journal_of_an_older_version_is_read(planned, tmp_path):
    config, jobs = planned(*ONE)
    run = RunDir(config.run_dir)
    submission = jobs[0].submission(run.path, "seigh", [])
    journal.record(run, submission)
    assert journal.submissions(run) == [submission]
    content = json.loads(run.jobs.read_text())
    del content["parts"]
    run.jobs.write_text(json.dumps(content))
    (found,) = journal.submissions(run)
    assert list(found.elements) == [submission.task]
    assert found.own(found.task) == found


@pytest.mark.parametrize(
    ("count", "throttle", "last"),
    [(101, "null", 101), (100, "null", None), (500, "100", None), (500, "200", 200)],
)
def test_a_hundred_and_more_at_once_begin_one_after_the_other(planned, count, throttle, last):
    many = ["sketch.rounds=1", "sketch.inner=600", "sketch.block_size=1"]
    many += ["launcher.blocks_per_task=1", f"resources.measure.throttle={throttle}"]
    _, jobs = planned(*many)
    job = replace(jobs[-2], tasks=jobs[-2].tasks[:count])
    submission = job.submission(RunDir("run").path, "seigh", [])
    waits = [s for s in job_script(RunDir("run"), job, submission).split("\n") if "sleep" in s]
    wait = f"[ $SLURM_ARRAY_TASK_ID -ge {last} ] || sleep $((SLURM_ARRAY_TASK_ID / 10 % 60))"
    assert waits == ([] if last is None else [wait])


def test_of_two_layouts_at_once_the_later_goes_by_what_the_first_wrote(
    small, reference, monkeypatch
):
    config = small("training.record_steps=[60]")
    run = RunDir(config.run_dir)
    shutil.copytree(RunDir(reference.run_dir).training, run.training)
    bind(run, config)
    context = Context(run, config, "seigh", 60, "test", round=1)
    choose = layout.choose

    def beside_another(*arguments, **options):
        N, chosen = choose(*arguments, **options)
        theirs = vars(replace(chosen, strategy="loop"))
        layout.lay_out(context, config.sketch.each_round()[0], N, theirs)
        return N, chosen

    monkeypatch.setattr(layout, "choose", beside_another)
    layout.run(context)
    assert context.provenance.strategy == "loop"


@pytest.mark.parametrize(
    ("resumes", "restarts", "began", "outcome"),
    [
        (True, 0, 0, "requeued for the 1. of 2 times"),
        (True, 1, 0, "stuck"),
        (True, 1, 50, "requeued for the 2. of 2 times"),  # it had half of the job's time
        (True, 2, 50, "no more"),
        (False, 0, 0, "no more"),
        (False, 0, 50, "requeued for the 1. of 2 times"),
    ],
)
def test_a_task_that_began_late_in_its_job_is_requeued_at_the_limit(
    monkeypatch, resumes, restarts, began, outcome
):
    said, now = [], [1000.0 + began]
    monkeypatch.setattr(inside.time, "time", lambda: now[0])
    monkeypatch.setattr(inside.scheduler, "requeue", lambda job: None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    monkeypatch.setenv(inside.STARTED, "1000")
    before = signal.getsignal(signal.SIGUSR2)
    try:
        inside.requeue_at_time_limit(2, resumes, said.append, lambda: "stuck")
        now[0] = 1100.0
        signal.raise_signal(signal.SIGUSR2)
    except SlurmError as error:
        said.append(str(error))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert outcome in said[-1]
