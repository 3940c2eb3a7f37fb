"""Kronecker factors by submit: arrays of partial sums, merged, with the bytes of a local run."""

from __future__ import annotations

import pytest

from skerch.jobs.config import load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.run_dir import RunDir


@pytest.mark.slow
def test_factors_by_submit_leave_the_bytes_of_a_local_run(new_run, tmp_path, small_overrides):
    asked = [*small_overrides, "method=ekfac", "kronecker.part_size=15"]
    asked += ["training.record_steps=[20]", "launcher.blocks_per_task=2"]
    with new_run(tmp_path / "run", "digits") as run:
        said = run.submit(*asked, "cluster=devcluster").stdout
        assert "14 tasks are submitted in 5 jobs" in said  # 4 of factors, and of corrections
        run.wait_for_end()
        alone = load("digits", [*asked, f"run_dir={tmp_path / 'local'}"])
        assert not complete(alone)
        ours, theirs = (
            {path.name: path.read_bytes() for path in each.step("ekfac", 20, "test").path.glob("*")}
            for each in (RunDir(run.path), RunDir(alone.run_dir))
        )
        assert ours == theirs
