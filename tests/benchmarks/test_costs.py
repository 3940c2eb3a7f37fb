"""The bytes that stages must cost, against the files that they leave."""

from __future__ import annotations

import pytest

from benchmarks.runs import begin, do, quadratic
from skerch.jobs import pipeline
from skerch.jobs.commands.seigh.costs import workload

N = 20_480  # rows and columns fill the chunks of the files


@pytest.fixture
def experiment(tmp_path):
    sizes = {"outer": 64, "inner": 64, "probes": 64, "block_size": 32}
    return quadratic(f"run_dir={tmp_path / 'run'}", f"problem.n={N}", **sizes)


def test_stages_write_the_bytes_that_they_are_said_to(experiment):
    _, tasks = begin(experiment)
    for task in tasks[:-1]:
        do(experiment, task)
        if task.stage in ("measure", "range_finder", "merge", "decompose"):
            written = sum(path.stat().st_size for path in task.outputs)
            said = workload(task, experiment, N).written
            assert written == pytest.approx(said, rel=0.1), task.id


def test_every_matvec_is_counted_once(experiment):
    found = [workload(task, experiment, N).matvecs for task in pipeline.tasks(experiment)]
    assert sum(found) == 64 + 64
