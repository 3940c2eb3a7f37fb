"""Time limits that are short: what is kept before each, and the end of what cannot be kept."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MEASURE = "seigh.step-000020-test.measure-1"


def hurry(run):
    """Start requeued jobs of a run soon; Slurm has them wait."""
    for line in run.queue("%i|%r"):
        job, _, reason = line.partition("|")
        if reason == "BeginTime":
            time.sleep(2)  # within the same second a node takes it for the job that was killed
            run.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)


def test_a_training_of_several_time_limits_ends(run, local, results_of):
    """Its twenty steps take a minute, which is the limit, and the start takes its time, too."""
    run.path.mkdir()
    (run.path / "slow").write_text("3")
    run.submit("resources.train.time=1min")
    log = run.path / "logs" / "train.log"

    def trained():
        hurry(run)
        return " train done, " in log.read_text() if log.exists() else False

    run.wait(trained, "the end of the training", 300)
    assert re.search(r"requeued for the \d+. of 10 times", log.read_text())
    run.wait_for_end()
    assert results_of(run.path) == results_of(local)


def test_a_training_that_gets_no_further_stops_at_its_second_limit(run):
    run.path.mkdir()
    (run.path / "slow").write_text("100")
    run.submit("resources.train.time=1min")

    def ended():
        hurry(run)
        return run.status()["train"]["state"] == "failed"

    run.wait(ended, "the second limit", 200)
    status = run.status()["train"]
    assert status["exit_code"] == "1:0"
    assert status["reason"] == (
        "train wrote no checkpoint from one time limit to the next, and would never end; raise "
        "resources.train.time, or lower training.eval_samples if evaluations take long."
    )
    assert Path(status["log"]).read_text().count("requeued for the") == 1


def test_a_measurement_stops_once_it_gets_no_further(trained, results_of, local):
    """Its first attempt writes no block, its second one does, and its third none."""
    task = "measure-1.0"

    def limit(block):
        trained.halted(0)
        trained.halt(block, 0)
        trained.signal(f"{trained.job(task)}_0", "USR2")

    def requeued(times):
        def again():
            hurry(trained)
            log = (trained.path / "logs" / f"{MEASURE}.0.log").read_text()
            return f"requeued for the {times}. of 10 times" in log

        trained.wait(again, f"requeue {times}")

    trained.halt(1, 0)
    trained.submit()
    limit(2)
    requeued(1)
    trained.wait(lambda: len(trained.blocks()) == 7 or hurry(trained), "its block, and the others'")
    limit(1)
    requeued(2)
    trained.wait(lambda: (trained.path / "halted.0").exists() or hurry(trained), "a third attempt")
    limit(1)
    trained.wait(lambda: trained.status()[task]["state"] == "failed", "its failure")
    reason = trained.status()[task]["reason"]
    assert reason.startswith(f"{MEASURE}.0 wrote no block from one time limit to the next")
    assert "raise resources.measure.time, or take a smaller sketch.block_size" in reason
    trained.go_on(0)
    assert "measure-1 [0]\n" in trained.submit().stdout
    trained.wait_for_end()
    assert results_of(trained.path) == results_of(local)
