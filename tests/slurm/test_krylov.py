"""lanczos, trace and density by submit: a job a Hessian, on one training."""

from __future__ import annotations

import json

import pytest

from skerch.jobs.config import load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.run_dir import RunDir

ASKED = {
    "lanczos": ["lanczos.k=5"],
    "trace": ["trace.products=30", "trace.deflate=lanczos"],
    "density": ["density.runs=2", "density.steps=10"],
}


@pytest.mark.slow
def test_methods_by_submit_leave_the_bytes_of_a_local_run(new_run, tmp_path, small_overrides):
    alone = RunDir(tmp_path / "local")
    with new_run(tmp_path / "run", "digits") as run:
        for method, options in ASKED.items():
            asked = [*small_overrides, f"method={method}", *options]
            said = run.submit(*asked, "cluster=devcluster").stdout
            tasks = 2 + (method == "lanczos")  # and the training
            assert f"{tasks} tasks are submitted in {tasks} jobs" in said
            run.wait_for_end()
            assert not complete(load("digits", [f"run_dir={alone.path}", *asked]))
            for step in (20, 60):
                ours, theirs = (
                    {path.name: path.read_bytes() for path in folder.iterdir()}
                    for folder in (
                        each.step(method, step, "test").path for each in (RunDir(run.path), alone)
                    )
                )
                assert ours == theirs
        status = json.loads(run.skerch("status", run.path, "--json").stdout)
    states = {task["state"] for method in status["methods"] for task in method["tasks"]}
    assert states == {"done"}
