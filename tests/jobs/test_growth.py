"""A run that grows: what is there stays to the byte, and the rest is as if asked for at once."""

from __future__ import annotations

import pytest

from skerch.jobs import pipeline, results, task_log
from skerch.jobs.run_dir import RunDir
from skerch.jobs.status import status

BESIDES = ("config.yaml", "checkpoint.pt", "log.jsonl", "parameters.h5", "training.png")


def files(run):
    """The bytes and the time of each file of results that stays as it is."""
    kept = (".h5", ".json", ".pt", ".png")
    return {
        path.relative_to(run.path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in run.path.rglob("*")
        if path.suffix in kept and path.name not in BESIDES and path.name[0] != "."
    }


@pytest.mark.parametrize(
    ("first", "workers"),
    [(["training.max_steps=20", "training.record_steps=[20]"], 2),
     (["training.record_steps=[60]"], 1)],
    ids=["later", "earlier"],
)  # fmt: skip
def test_a_run_that_grows_by_a_step_becomes_that_of_all_steps(
    first, workers, small, reference, results_of
):
    config = small(*first)
    run = RunDir(config.run_dir)
    assert not results.complete(config)
    before, ran = files(run), task_log.records(run)
    grown = small(f"launcher.workers={workers}")
    assert not results.complete(grown)
    after = files(run)
    assert {path: after[path] for path in before} == before
    assert results_of(run.path) == results_of(reference.run_dir)
    again = {task for task, record in task_log.records(run).items() if ran.get(task) != record}
    old = f"step-{config.training.record_steps[0]:06d}"
    assert again == {t.id for t in pipeline.tasks(grown) if old not in t.id}


def test_status_tells_of_what_is_there_or_was_asked_for_last_and_of_no_more(small):
    few = ["sketch.rounds=1", "sketch.outer=8", "sketch.probes=2"]
    for asked in (
        ["training.record_steps=[20,60]"],
        ["training.record_steps=[60]", "hessian.splits=[train]"],
        ["training.record_steps=[20]", "hessian.splits=[train]", "name=other"],
    ):
        assert not results.complete(small(*few, *asked))
    methods = status(RunDir(small().run_dir))["methods"]
    found = {m["name"]: {task["id"].split(".")[1] for task in m["tasks"][1:]} for m in methods}
    assert found == {
        "seigh": {"step-000020-test", "step-000060-test", "step-000060-train"},
        "other": {"step-000020-train"},
    }
    assert {task["state"] for method in methods for task in method["tasks"]} == {"done"}
