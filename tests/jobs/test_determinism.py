"""The same bytes whatever the number of workers and the order of the tasks."""

from __future__ import annotations

import random

import pytest

from skerch.jobs import pipeline
from skerch.jobs.launchers.complete import complete
from skerch.jobs.run_dir import RunDir


def shuffled(tasks, generator):
    """The tasks in a random order, each after those that it needs."""
    waiting = {task.id: task for task in tasks}
    while waiting:
        ready = [task for task in waiting.values() if not waiting.keys() & set(task.needs)]
        yield waiting.pop(generator.choice(ready).id)


def files(config):
    """What the results of a run are, byte by byte."""
    path = RunDir(config.run_dir).path
    found = [*path.rglob("*.h5"), *path.rglob("*.json"), *path.rglob("*.pt"), *path.rglob("*.png")]
    return {p.relative_to(path): p.read_bytes() for p in found if not p.name.endswith("_ALL.h5")}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["digits", "mnist_mini"])
def test_workers_and_order_do_not_change_a_byte(experiment, small, monkeypatch, request):
    root = []
    if experiment == "mnist_mini":
        root = [f"problem.root={request.getfixturevalue('mnist')}"]

    def run(*overrides):
        run_dir = "-".join(["run", *overrides])
        config = small(*root, *overrides, f"run_dir={run_dir}", experiment=experiment)
        assert not complete(config)
        return files(config)

    expected = run()
    assert len(expected) > 20
    missing, generator = pipeline.missing, random.Random(1)
    monkeypatch.setattr(pipeline, "missing", lambda tasks: [*shuffled(missing(tasks), generator)])
    for workers in (1, 2, 3):
        assert run(f"launcher.workers={workers}", "launcher.blocks_per_task=1") == expected
