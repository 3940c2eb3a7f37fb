"""Kronecker factors by ranks: the bytes of a local run."""

from __future__ import annotations

import shutil

import pytest

from skerch.jobs.config import load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.run_dir import RunDir


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ekfac", "nearest"])
def test_ranks_share_the_parts_and_leave_the_bytes_of_a_local_run(
    method, mpiexec, tmp_path, small_overrides
):
    asked = [*small_overrides, f"method={method}", "kronecker.part_size=15"]
    asked += ["training.record_steps=[20]", "kronecker.iterations=2", "kronecker.partitions=2"]
    alone, ranked = (load("digits", [*asked, f"run_dir={tmp_path / n}"]) for n in ("a", "b"))
    assert not complete(alone)
    shutil.copytree(RunDir(alone.run_dir).training, RunDir(ranked.run_dir).training)
    by_ranks = ["launcher.name=mpi", "launcher.workers=2", f"run_dir={ranked.run_dir}"]
    assert not complete(load("digits", [*asked, *by_ranks]))
    ours, theirs = (
        {
            path.name: path.read_bytes()
            for path in RunDir(each.run_dir).step(method, 20, "test").path.glob("*")
        }
        for each in (ranked, alone)
    )
    assert ours == theirs
