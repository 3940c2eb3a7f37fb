"""A submitted sweep: its files are those of a sweep here, and its runs share a training."""

from __future__ import annotations

import json

import pytest

SWEPT = ["training.seed=[3]", "sketch.seed=[1,2]"]


@pytest.mark.slow
def test_a_submitted_sweep_has_the_files_of_one_that_is_done_here(
    new_run, tmp_path, small_overrides, skerch
):
    few = [*small_overrides, "training.record_steps=[60]", "launcher.blocks_per_task=8"]
    folder = tmp_path / "sweep"
    folder.mkdir()
    with new_run(folder / "training.seed=3") as run:
        place = [f"run_dir={folder}", "cluster=devcluster", "--submit"]
        said = run.skerch("sweep", "digits", *few, *SWEPT, *place).stdout.splitlines()
        assert len(said) == 2 * 2 + 1
        assert said[2] == "[2/2] training.seed=3, sketch.seed=2"
        assert "8 tasks are submitted in 1 job, and 10 were live" in said[3]  # with one training
        assert said[4].endswith(f"; python -m skerch cancel {folder}")
        assert run.skerch("status", folder, "--exit-code", check=False).returncode == 3
        run.wait_for_end(300)
        assert run.skerch("status", folder, "--exit-code").returncode == 0
        rows = json.loads(run.skerch("results", folder, "--json").stdout)
        page = run.skerch("report", folder).stdout.strip()
    assert page == str(folder / "report.html")
    assert [(row["training.seed"], row["sketch.seed"]) for row in rows] == [(3, 1), (3, 2)]
    here = tmp_path / "here"
    assert skerch("sweep", "digits", *few, *SWEPT, f"run_dir={here}")[0] == 0
    there = [path.relative_to(folder) for path in folder.glob("*/seigh-*/step-*/*.h5")]
    assert len(there) == 2 * 3
    for path in [*there, "training.seed=3/training/parameters.h5"]:
        assert (folder / path).read_bytes() == (here / path).read_bytes()


def test_cancel_ends_the_jobs_of_all_runs(new_run, tmp_path, small_overrides):
    folder = tmp_path / "sweep"
    folder.mkdir()
    later = ["cluster=devcluster", "resources.all.sbatch.begin=now+1hour", "--submit"]
    with new_run(folder / "training.seed=1") as one, new_run(folder / "training.seed=2") as two:
        given = [*small_overrides, "training.seed=[1,2]", f"run_dir={folder}", *later]
        one.skerch("sweep", "digits", *given)
        assert one.queue()
        assert two.queue()
        said = one.skerch("cancel", folder).stdout.splitlines()
        assert len(said) == 2
        assert all(" are cancelled; to go on: python -m skerch submit " in line for line in said)
        assert not one.queue() + two.queue()
        assert one.skerch("status", folder, "--exit-code", check=False).returncode == 4
