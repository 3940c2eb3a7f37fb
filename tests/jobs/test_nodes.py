"""Which nodes a run's jobs are kept from, by what tasks recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skerch.jobs.config.resources import Resources
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.nodes import bad_nodes, without
from skerch.jobs.launchers.slurm.observed import Submitted
from skerch.jobs.pipeline import Task
from skerch.jobs.run_dir import RunDir


@pytest.fixture
def judged(tmp_path):
    """The bad nodes of a run whose tasks took so many seconds on nodes, and died on others."""

    def judge(took, died=()):
        run = RunDir(tmp_path)
        run.logs.mkdir()
        tasks, lines = [], []
        for number, (node, seconds) in enumerate(took):
            id = f"seigh.step-000020-test.measure-1.{number}"
            tasks.append(Task(id, "measure", {}, (Path("a block"), Path("another")), ()))
            record = {"id": id, "stage": "measure", "started": 1.0, "seconds": seconds}
            lines.append(json.dumps(record | {"error": None, "node": node}))
        run.task_records.write_text("\n".join(lines))
        healed = {tasks[number].id: node for number, node in died}
        known = Submitted([Submission("token", "seigh", "x", None, died=healed)], {})
        return bad_nodes(run, tasks, known)

    return judge


def test_a_node_several_times_slower_than_the_others_is_left_out(judged):
    found = judged([("n1", 40.0)] * 3 + [("n2", 45.0)] * 3 + [("n3", 170.0)] * 3)
    assert found == {"n3": "measure took 4.0 times as long there as elsewhere"}


def test_short_tasks_and_few_tell_nothing(judged):
    assert judged([("n1", 1.0)] * 3 + [("n2", 9.0)] * 3 + [("n3", 900.0)] * 2) == {}


def test_a_node_is_left_out_once_two_tasks_died_there_and_lived_elsewhere(judged):
    took = [("n1", 1.0)] * 3
    found = judged(took, died=[(0, "n2"), (1, "n2"), (2, "n1")])
    task = "seigh.step-000020-test.measure-1.0"
    assert found == {"n2": f"{task} and 1 more task died there and lived elsewhere"}


def test_what_is_left_out_is_added_to_what_the_user_leaves_out():
    wanted = {"merge": Resources(exclude="m[1-3]"), "train": Resources()}
    found = without(wanted, {"n2", "n1"})
    assert (found["merge"].exclude, found["train"].exclude) == ("m[1-3],n1,n2", "n1,n2")
    assert without(wanted, []) == wanted
