"""The bytes that stages must cost, against the files that they leave."""

from __future__ import annotations

import math

import pytest

from benchmarks.runs import begin, do, quadratic
from skerch.jobs import pipeline
from skerch.jobs.commands.costs import Machine, costs

N = 20_480  # rows and columns fill the chunks of the files


@pytest.fixture
def experiment(tmp_path):
    sizes = ("outer=64", "inner=64", "probes=64", "block_size=32")
    return quadratic(
        f"run_dir={tmp_path / 'run'}", f"problem.n={N}", *(f"sketch.{size}" for size in sizes)
    )


def test_stages_write_the_bytes_that_they_are_said_to(experiment):
    writes = Machine(math.inf, 1.0, math.inf, 0.0, 0.0, 0.0, 0.0)
    _, tasks = begin(experiment)
    for task in tasks[:-1]:
        do(experiment, task)
        if task.stage in ("measure", "range_finder", "merge", "decompose"):
            written = sum(path.stat().st_size for path in task.outputs)
            said = costs(task, experiment, N, 0.0, writes)["disk"]
            assert written == pytest.approx(said, rel=0.1), task.id


def test_every_matvec_is_counted_once(experiment):
    free = Machine(math.inf, math.inf, math.inf, 0.0, 0.0, 0.0, 0.0)
    found = [costs(task, experiment, N, 1.0, free) for task in pipeline.tasks(experiment)]
    assert sum(of_task.get("HVPs", 0.0) for of_task in found) == 64 + 64
