"""What a run cost, against what its tasks were made to use."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from skerch.jobs.launchers.slurm import journal
from skerch.jobs.run_dir import RunDir
from tests.slurm.using import COMPUTED, HELD, SLEPT

USING = Path(__file__).with_name("using.yaml")
TOO_LITTLE = 1350  # MiB for a training that holds HELD beside torch; the next try gets twice that
AROUND = 15.0  # seconds at most in which a process starts and imports torch, on a busy machine
UNSEEN = 50  # MiB that come and go between two looks, at most


@pytest.fixture(params=["accounting", "records"])
def used(request, run, needs, devcluster, bring_up, tmp_path):
    """A run whose training was killed once for lack of memory, and whether there is accounting."""
    run = replace(run, experiment=USING)
    folder = tmp_path / "cluster"
    if request.param == "accounting":
        for program in ("slurmdbd", "mariadbd"):
            present = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")
            needs(present, "accounting: slurm/devcluster/install.sh --accounting on Debian")
        folder.mkdir()
        run = replace(run, cluster=bring_up(folder, "--accounting"))
    try:
        run.submit(f"resources.train.memory={TOO_LITTLE}M")
        run.wait_for_end(300)
        yield run, folder.exists()
    finally:
        if folder.exists():
            devcluster("down", folder)


@pytest.mark.slow
def test_figures_are_what_tasks_were_made_to_use_and_auto_asks_for_it(used):
    run, accounting = used
    said = json.loads(run.skerch("status", run.path, "--json").stdout)
    costs, proposed = {each["stage"]: each for each in said["cost"]}, said["proposed"]
    told = json.loads((run.path / "used.json").read_text())

    train = costs["train"]
    assert (train["tasks"], train["attempts"]) == (1, 2 if accounting else 1)
    assert HELD < told["memory"] <= train["memory"] + 1 < told["memory"] + UNSEEN
    assert train["memory_asked"] == 2 * TOO_LITTLE
    assert train["memory_efficiency"] == pytest.approx(100 * train["memory"] / (2 * TOO_LITTLE))
    assert COMPUTED < 3600 * train["cpu_hours"] < COMPUTED + train["attempts"] * AROUND
    # Two CPUs for the longest attempt at least, of which the loop took one all the time that it
    # lasted; how much of one a start takes is the machine's to say.
    assert train["cpu_hours_asked"] >= 2 * train["seconds"] / 3600
    assert train["cpu_hours_asked"] * 3600 <= 2 * train["attempts"] * (train["seconds"] + 1)
    percent = 100 * train["cpu_hours"] / train["cpu_hours_asked"]
    assert train["cpu_efficiency"] == pytest.approx(percent)
    assert train["seconds"] >= told["wall"]
    assert percent < 50 * 1.1  # a single one is busy; Slurm counts whole seconds

    measure = costs["measure"]
    assert SLEPT < measure["seconds"] < SLEPT + AROUND
    assert measure["seconds_asked"] == 1200
    assert measure["time_efficiency"] == pytest.approx(measure["seconds"] / 12)
    starting = 100 * AROUND / (AROUND + SLEPT) / 2  # percent of two CPUs, that only start
    assert 0 < measure["cpu_efficiency"] < starting
    assert all(each["gpu_hours"] == 0 for each in costs.values())

    asked = int(proposed["train"]["memory"].removesuffix("M"))
    assert max(TOO_LITTLE, 1.2 * train["memory"]) < asked < 1.2 * train["memory"] + 200
    assert (proposed["train"]["time"], proposed["measure"]["time"]) == ("5min", "5min")
    words = run.submit("resources=auto", "hessian.splits=[train]").stdout
    assert f"resources: auto takes train {asked}M 5min, layout " in words
    assert "measure-1|5:00" in "\n".join(run.queue("%j|%l"))
    run.wait_for_end(300)
    given = {s.task: (s.memory, s.time) for s in journal.submissions(RunDir(run.path))}
    assert given["train"] == (asked, 5)
    assert {task["state"] for task in run.status().values()} == {"done"}
