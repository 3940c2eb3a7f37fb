"""The task graph: pure, complete, and closed under what each stage reads."""

from __future__ import annotations

import json

import pytest

from skerch.jobs import pipeline
from skerch.jobs.pipeline.ranges import parse_ranges


def graph(config):
    return {task.id: task for task in pipeline.tasks(config)}


def test_two_rounds_have_a_range_finder_and_a_second_array(small):
    tasks = graph(small("training.record_steps=[20]"))
    stages = [task.stage for task in tasks.values()]
    assert stages[:2] == ["train", "layout"]
    assert stages[-3:] == ["merge", "decompose", "analyze"]
    assert stages.count("layout") == 2
    assert stages.count("range_finder") == 1
    assert "range_finder" not in [t.stage for t in pipeline.tasks(small("sketch.rounds=1"))]


def test_tasks_come_after_what_they_need_and_are_json(small):
    seen = set()
    for task in pipeline.tasks(small()):
        assert set(task.needs) <= seen
        seen.add(task.id)
        assert json.loads(json.dumps(task.arguments)) == task.arguments


def test_measurement_task_t_is_its_range_of_blocks_whatever_is_missing(small):
    config = small("sketch.rounds=1", "training.record_steps=[20]")
    measures = [task for task in pipeline.tasks(config) if task.stage == "measure"]
    blocks = -(-40 // 8) + -(-30 // 8)
    assert len(measures) == -(-blocks // 2)
    for index, task in enumerate(measures):
        assert task.arguments["tasks"] == [index]
        numbers = [int(path.stem.removeprefix("block-")) for path in task.outputs]
        assert numbers == [b for b in (2 * index, 2 * index + 1) if b < blocks]
    for path in measures[0].outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    missing = [task for task in pipeline.missing(pipeline.tasks(config)) if task in measures]
    assert missing == measures[1:]


def test_ranges_of_tasks_are_read_as_slurm_writes_them():
    assert parse_ranges("3,5-9") == (3, 5, 6, 7, 8, 9)
    for bad in ("", "a", "1-", "-1", "1,,2", "5-2", "0-9999999999"):
        with pytest.raises(ValueError, match="not a list of ranges"):
            parse_ranges(bad)
