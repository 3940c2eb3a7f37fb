"""The bytes that stages must cost, against the files that they leave."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from skerch.jobs import config, pipeline
from skerch.jobs.commands.costs import Machine, costs
from skerch.jobs.launchers import local
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import bind

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

N = 20_480  # rows and columns fill the chunks of the files


@pytest.fixture
def experiment(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(
        f'problem: {{factory: "quadratic:make", n: {N}}}\nproblem_path: {BENCHMARKS}\n'
        "training: {max_steps: 0, record_steps: [0], batch_size: 1}\n"
        "hessian: {splits: [test], datapoints: 1, subset: first, strategy: loop}\n"
        "sketch: {outer: 64, inner: 64, probes: 64, block_size: 32}\n"
        "launcher: {threads: 1}\n"
    )
    return config.load(file, [f"run_dir={tmp_path / 'run'}"])


def test_stages_write_the_bytes_that_they_are_said_to(experiment):
    writes = Machine(math.inf, 1.0, math.inf, 0.0, 0.0, 0.0, 0.0)
    tasks = pipeline.tasks(experiment)
    bind(RunDir(experiment.run_dir), experiment)
    for task in tasks[:-1]:
        assert local.run_task(experiment, task) is None
        if task.stage in ("measure", "range_finder", "merge", "decompose"):
            written = sum(path.stat().st_size for path in task.outputs)
            said = costs(task, experiment, N, 0.0, writes)["disk"]
            assert written == pytest.approx(said, rel=0.1), task.id


def test_every_matvec_is_counted_once(experiment):
    free = Machine(math.inf, math.inf, math.inf, 0.0, 0.0, 0.0, 0.0)
    found = [costs(task, experiment, N, 1.0, free) for task in pipeline.tasks(experiment)]
    assert sum(of_task.get("HVPs", 0.0) for of_task in found) == 64 + 64
