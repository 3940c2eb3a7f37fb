"""Files that are damaged, or of something else, are refused by their names."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from skerch.jobs.launchers.complete import complete

ROOT = Path(__file__).parents[2]
STEP = "seigh/step-000060-test"
BLOCK = f"{STEP}/measurements/round-1/blocks/block-000000.h5"


@pytest.mark.slow
def test_damage_to_any_file_is_named_or_harmless_and_repaired():
    corruption = subprocess.run(
        [sys.executable, "tests/jobs/corruption.py", "--flips=42"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert corruption.returncode == 0, corruption.stdout + corruption.stderr


@pytest.fixture
def damaged(reference, tmp_path):
    """A copy of the finished run, without what the blocks of its last step were made into."""
    run_dir = tmp_path / "run"
    shutil.copytree(reference.run_dir, run_dir)
    for name in ("merged.h5", "eigh.h5", "measurements/round-2/range.h5"):
        (run_dir / STEP / name).unlink()
    return run_dir


def check_refused(skerch, run_dir, name):
    """`status --verify` and `run` must fail and name a file, in one sentence."""
    for arguments in (["status", run_dir, "--verify"], ["run", run_dir]):
        status, out, err = skerch(*arguments)
        words = out + err
        assert status in (1, 2)
        assert str(run_dir / name) in words
        assert "traceback" not in words


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_block_that_is_cut_off_is_refused_and_measured_again(
    damaged, reference, results_of, skerch, share
):
    path = damaged / BLOCK
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    check_refused(skerch, damaged, BLOCK)
    path.unlink()
    assert skerch("run", damaged)[0] == 0
    assert results_of(damaged) == results_of(reference.run_dir)


@pytest.mark.parametrize("stranger", ["step", "seed", "round", "neighbour"])
def test_a_block_from_elsewhere_is_refused_and_measured_again(
    damaged, reference, results_of, skerch, small, tmp_path, stranger
):
    path = damaged / BLOCK
    neighbour = path.with_name("block-000001.h5")
    strangers = {
        "step": damaged / BLOCK.replace("000060", "000020"),
        "seed": tmp_path / "other" / BLOCK,
        "round": damaged / BLOCK.replace("round-1", "round-2"),
        "neighbour": neighbour,
    }
    if stranger == "seed":
        shutil.copytree(damaged / "training", tmp_path / "other" / "training")
        assert not complete(small("sketch.seed=7", "run_dir=other"))
    ours, theirs = path.read_bytes(), strangers[stranger].read_bytes()
    path.write_bytes(theirs)
    if stranger == "neighbour":
        neighbour.write_bytes(ours)
    check_refused(skerch, damaged, BLOCK)
    path.unlink()
    neighbour.unlink()
    assert skerch("run", damaged)[0] == 0
    assert results_of(damaged) == results_of(reference.run_dir)


@pytest.mark.parametrize(
    "name", ["eigh.h5", "merged.h5", "overlap.json", "measurements/round-2/range.h5"]
)
def test_results_of_another_seed_are_neither_shown_nor_used(
    damaged, reference, results_of, skerch, small, tmp_path, name
):
    assert not complete(small("training.seed=7", "run_dir=other"))
    shutil.copy(tmp_path / "other" / STEP / name, damaged / STEP / name)
    if name != "overlap.json":
        (damaged / STEP / "overlap.json").unlink()
    check_refused(skerch, damaged, f"{STEP}/{name}")
    (damaged / STEP / name).unlink()
    assert skerch("run", damaged)[0] == 0
    assert results_of(damaged) == results_of(reference.run_dir)


def test_eigenpairs_of_another_seed_are_refused_where_a_manifest_is_lost(damaged, skerch, small):
    assert not complete(small("training.seed=7", "run_dir=other"))
    shutil.copy(f"other/{STEP}/eigh.h5", damaged / STEP)
    (damaged / STEP / "measurements/round-1/manifest.json").unlink()
    (damaged / STEP / "overlap.json").unlink()
    check_refused(skerch, damaged, f"{STEP}/eigh.h5")


@pytest.mark.parametrize(
    ("other", "folder"), [("sketch.seed=7", "measurements"), ("training.seed=7", "")]
)
def test_measurements_of_another_run_are_not_taken_over(damaged, skerch, small, other, folder):
    assert not complete(small(other, "run_dir=other"))
    shutil.rmtree(damaged / STEP / folder)
    shutil.copytree(f"other/{STEP}/{folder}", damaged / STEP / folder)
    status, _, err = skerch("run", damaged)
    assert status == 1
    assert f"{STEP}/measurements/round-1/manifest.json is of other measurements" in err


def test_the_config_of_a_run_is_taken_as_it_was_written_or_not_at_all(damaged, skerch):
    path = damaged / "config.yaml"
    path.write_text(path.read_text().replace("threads: 1", "threads: 3"))
    check_refused(skerch, damaged, path.name)
    copy = shutil.copy(path, damaged.with_name("mine.yaml"))
    assert skerch("run", copy, f"run_dir={damaged}")[0] == 0
    assert skerch("run", damaged)[0] == 0


def test_a_lost_log_of_the_training_is_restored(damaged, reference, skerch):
    log = damaged / "training" / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole.replace("loss", "lost"))
    status, out, _ = skerch("status", damaged, "--verify")
    assert status == 1
    assert f"{log} is damaged" in out
    log.unlink()
    parameters = (damaged / "training" / "parameters.h5").stat().st_mtime_ns
    assert skerch("run", damaged)[0] == 0
    assert log.read_text() == whole
    assert (damaged / "training" / "parameters.h5").stat().st_mtime_ns == parameters
