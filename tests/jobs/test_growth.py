"""A run that grows: what is there stays to the byte, and the rest is as if asked for at once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from skerch.jobs import pipeline
from skerch.jobs.commands.load import load
from skerch.jobs.commands.status import status
from skerch.jobs.launchers.complete import complete
from skerch.jobs.problems import load_problem
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import RunDirError
from skerch.jobs.run_dir.training_files import load_model
from skerch.jobs.training import session as train

GROWING = ("checkpoint.pt", "hessian_data.pt", "parameters.h5", "training.png")


def files(run):
    """The bytes and the time of each file of results that stays as it is."""
    return {
        path.relative_to(run.path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in run.path.rglob("*")
        if path.suffix in (".h5", ".json", ".pt", ".png") and path.name not in GROWING
    }


def grow(first, second, lost="none"):
    """Run two configs, and see that the second adds to what is there: files, and tasks run.

    The files of the first that are called `lost` are lost before the second.
    """
    run = RunDir(first.run_dir)
    assert not complete(first)
    for path in run.path.glob(f"seigh/*/{lost}"):
        path.unlink()
    before, ran = files(run), run.task_records.read_text()
    missing = {task.id for task in pipeline.missing(pipeline.tasks(second))}
    begun = {task.id for task in pipeline.tasks(first)}
    left = {task.id for task in pipeline.missing(pipeline.tasks(first))}
    assert missing - left == {t.id for t in pipeline.tasks(second)} - begun | {"train"}
    assert not complete(second)
    after = files(run)
    assert {path: after[path] for path in before} == before
    lines = run.task_records.read_text().removeprefix(ran).splitlines()
    assert sorted(json.loads(line)["id"] for line in lines if line) == sorted(missing)


@pytest.mark.parametrize(
    "first",
    [
        ["training.max_steps=20", "training.record_steps=[20]"],
        ["training.record_steps=[60]"],
        ["hessian.splits=[train]", "training.record_steps=[60]"],
    ],
    ids=["later", "earlier", "split"],
)
def test_a_run_that_grows_becomes_that_of_all_at_once(first, small, reference, results_of):
    grow(small(*first), small(), lost="eigh.h5")
    expected, found = results_of(reference.run_dir), results_of(small().run_dir)
    if "hessian.splits=[train]" in first:  # which the other does not have
        del expected["training/parameters.h5"]
    assert {name: found[name] for name in expected} == expected


COLUMNS = {  # first, then what is raised, and the same asked for at once
    "auto": (
        [],
        ["sketch.inner=55", "sketch.rounds=auto"],
        ["sketch.inner=55", "sketch.rounds=[20,20,4,4,4,3]"],
    ),
    "inner": ([], ["sketch.inner=65"], ["sketch.inner=65", "sketch.rounds=[20,20,20,5]"]),
    "one round": (
        ["sketch.rounds=1", "sketch.inner=20"],
        ["sketch.rounds=3", "sketch.inner=45"],
        ["sketch.rounds=[20,13,12]", "sketch.inner=45"],
    ),
    "in one task": (
        ["sketch.rounds=5", "launcher.blocks_per_task=8"],
        ["sketch.rounds=auto", "sketch.inner=70", "sketch.outer=30"],
        ["sketch.rounds=[8,8,8,8,8,4,4,4,4,4,4,4,2]", "sketch.inner=70", "sketch.outer=30"],
    ),
    "pairs": ([], ["sketch.outer=30"], ["sketch.outer=30"]),
}


@pytest.mark.parametrize(("first", "more", "at_once"), COLUMNS.values(), ids=COLUMNS)
def test_a_run_that_grows_in_columns_measures_what_is_new_only(
    first, more, at_once, small, results_of, tmp_path
):
    few = ["training.record_steps=[60]", *first]
    assert not complete(small(*few))
    run = RunDir(small().run_dir)
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in run.path.rglob("round-*/**/*")
        if path.suffix in (".h5", ".json") and path.name != "range.h5"
    }
    assert before
    grown = small(*few, *more)
    missing = [task.stage for task in pipeline.missing(pipeline.tasks(grown))]
    assert missing[-3:] == ["merge", "decompose", "analyze"][-len(missing) :]
    assert not complete(grown)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert not pipeline.missing(pipeline.tasks(small(*few, *more)))
    whole = small(*few, *at_once, f"run_dir={tmp_path / 'whole'}")
    assert not complete(whole)
    assert results_of(grown.run_dir) == results_of(whole.run_dir)


@pytest.mark.parametrize(
    ("first", "more", "words"),
    [
        ([], ["sketch.inner=30"], r"rounds of \[20, 20\] matvecs, and sketch asks for \[15, 15\]"),
        ([], ["sketch.rounds=4"], r"grows by further rounds of at most as many"),
        (
            [],
            ["sketch.inner=200", "sketch.rounds=3"],
            r"grows by further rounds of at most as many",
        ),
        (
            ["keep_blocks=false"],
            ["sketch.inner=50", "sketch.rounds=auto"],
            r"has no blocks any more",
        ),
        (
            ["sketch.recovery=oversampled", "sketch.rounds=1"],
            ["sketch.outer=10"],
            r"recovery=overs",
        ),
    ],
)
def test_a_run_does_not_grow_where_what_is_there_would_be_lost(first, more, words, small):
    few = ["training.record_steps=[60]", *first]
    assert not complete(small(*few))
    before = files(RunDir(small().run_dir))
    with pytest.raises(RunDirError, match=words):
        complete(small(*few, *more))
    assert files(RunDir(small().run_dir)) == before


def test_a_run_grows_by_state_dicts(small, reference):
    problem = load_problem(reference.problem)

    def save(step):
        model = load_model(RunDir(reference.run_dir), problem, step)
        torch.save(model.state_dict(), f"net_{step}.pt")
        return small("training.checkpoints=net_*.pt", "training.record_steps=null")

    grow(save(60), save(20))


def test_status_tells_of_what_is_there_or_was_asked_for_last_and_of_no_more(small):
    few = ["sketch.rounds=1", "sketch.outer=8", "sketch.probes=2"]
    for asked in (
        ["training.record_steps=[20,60]"],
        ["training.record_steps=[60]", "hessian.splits=[train]"],
        ["training.record_steps=[20]", "hessian.splits=[train]", "name=other"],
    ):
        assert not complete(small(*few, *asked))
    methods = status([RunDir(small().run_dir)])[0].methods
    found = {m.name: {task.id.split(".")[1] for task in m.tasks[1:]} for m in methods}
    assert found == {
        "seigh": {"step-000020-test", "step-000060-test", "step-000060-train"},
        "other": {"step-000020-train"},
    }
    assert {task.state for method in methods for task in method.tasks} == {"done"}
    run = load(small().run_dir, "seigh")
    assert [(h.step, h.split) for h in run] == [(20, "test"), (60, "train"), (60, "test")]


@pytest.mark.parametrize("more", ["training.max_steps=60", "hessian.splits=[train,test]"])
def test_nothing_is_added_by_another_loss_than_that_of_the_training(small, monkeypatch, more):
    few = ["training.max_steps=20", "training.record_steps=[20]"]
    config = small(*few, "hessian.splits=[test]")
    assert not complete(config)
    run, original = RunDir(config.run_dir), train.load_problem
    before = files(run), run.parameters.read_bytes()

    def edited(*arguments):
        problem = original(*arguments)
        return replace(problem, loss_fn=lambda *call: 1.01 * problem.loss_fn(*call))

    monkeypatch.setattr(train, "load_problem", edited)
    larger = small(*(few[1:] if "splits" in more else ["training.record_steps=[20,60]"]), more)
    words = complete(larger)["train"]
    assert "loss is no longer that of the training" in words
    assert "step 20, split test: it was " in words
    assert (files(run), run.parameters.read_bytes()) == before
    monkeypatch.undo()
    assert not complete(larger)
