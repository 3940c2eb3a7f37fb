"""The scheduler's model: closed forms of list scheduling, and what it reads off a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.scheduler import Recording, Work, Workers, makespan, recording, replay, spans
from skerch.jobs.pipeline import Task


def array(count, blocks=lambda index: 4):
    """A layout, its measurement tasks, and a merge."""
    measures = [
        Task(f"m.measure-1.{i}", "measure", {}, (Path(),) * blocks(i), ("m.layout",))
        for i in range(count)
    ]
    merge = Task("m.merge", "merge", {}, (), ("m.layout", *(task.id for task in measures)))
    return [Task("m.layout", "layout", {}, (), ("train",)), *measures, merge]


def replayed(tasks, workers, start=0.0, rest=3.0):
    alone = ("layout", "merge")
    works = {t.id: Work(0.0, 1.0) if t.stage in alone else Work(start, rest) for t in tasks}
    return replay(tasks, works, workers)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_equal_tasks_take_as_many_waves_as_workers_need(count):
    found = replayed(array(7), Workers(count))
    assert makespan(found) == pytest.approx(1 + math.ceil(7 / count) * 3 + 1)


def test_tasks_that_start_together_share_the_cores():
    found = replayed(array(6), Workers(6, cores=2), start=1.0)
    assert makespan(found) == pytest.approx(1 + (6 * 1.0 / 2 + 3) + 1)
    assert makespan(replayed(array(6), Workers(6, cores=6), start=1.0)) == 1 + (1 + 3) + 1


def test_a_worker_waits_between_tasks_and_a_stage_for_the_one_before():
    found = replayed(array(4), Workers(2, refill=0.5, chain=2.0))
    assert makespan(found) == pytest.approx(1 + 2 + 3 + 0.5 + 3 + 2 + 1)


def test_a_free_worker_takes_the_first_task_that_is_ready():
    tasks = [Task(name, "merge", {}, (), needs) for name, needs in (("a", ()), ("b", ("a",)))]
    tasks.append(Task("c", "merge", {}, (), ()))
    works = {"a": Work(0, 2), "b": Work(0, 2), "c": Work(0, 5)}
    assert replay(tasks, works, Workers(1)) == {"a": (0, 2), "b": (2, 4), "c": (4, 9)}
    assert replay(tasks, works, Workers(2)) == {"a": (0, 2), "b": (2, 4), "c": (0, 5)}


def test_a_recording_has_the_start_and_the_delays_of_the_run_it_is_of(tmp_path):
    tasks = array(5, blocks=lambda index: 1 if index == 4 else 4)
    works = {t.id: Work(2.0, 1.5 * len(t.outputs)) for t in tasks}
    seen = replay(tasks, works, Workers(1, refill=0.3, chain=0.8))
    log = tmp_path / "tasks.jsonl"
    for name, (begin, end) in seen.items():
        line = {"id": name, "started": 100 + begin, "seconds": end - begin}
        log.write_text((log.read_text() if log.exists() else "") + f"\n{json.dumps(line)}\n")
    one = recording(tasks, spans(log))
    assert isinstance(one, Recording)
    assert (one.start, one.refill, one.chain) == pytest.approx((2.0, 0.3, 0.8))
    assert recording(tasks, spans(log), asleep=0.5).start == pytest.approx(1.5)
    for count in (1, 2, 3):
        foreseen = makespan(replay(tasks, one.work, one.workers(count)))
        true = makespan(replay(tasks, works, Workers(count, refill=0.3, chain=0.8)))
        assert foreseen == pytest.approx(true)
