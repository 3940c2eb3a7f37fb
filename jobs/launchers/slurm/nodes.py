"""Nodes that a run's jobs are kept from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from statistics import median

from skerch.jobs.config.resources import Resources
from skerch.jobs.config.stages import STAGES
from skerch.jobs.launchers.slurm.observed import Submitted
from skerch.jobs.pipeline import Task, task_log
from skerch.jobs.pipeline.ranges import counted
from skerch.jobs.run_dir import RunDir

DEATHS = 2  # on a node, from which it is left out: one may be an accident
SLOW = 3.0  # times the median of other nodes
TASKS = 3  # on a node, and on others, from which it is judged slow
SECONDS = 30.0  # of such a task at least


def bad_nodes(run: RunDir, tasks: Iterable[Task], known: Submitted) -> dict[str, str]:
    """Why a node is left out, in words, by its name.

    Tasks died there that were done on others, or tasks of an array took several times as long there
    as on the others.
    """
    records = task_log.records(run)
    done = {id: record for id, record in records.items() if record["error"] is None}
    died: dict[str, list[str]] = defaultdict(list)  # and lived elsewhere
    for submission in known.history:
        for task, node in submission.died.items():
            if done.get(task, {}).get("node") not in (None, node):
                died[node].append(task)
    found: dict[str, str] = {}
    for node, names in died.items():
        if len(names) >= DEATHS:
            more = counted(len(names) - 1, "more task")
            found[node] = f"{names[0]} and {more} died there and lived elsewhere"
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for task_ in tasks:
        record = done.get(task_.id, {})
        if STAGES[task_.stage].array and record.get("node") and task_.outputs:
            each = record["seconds"] / len(task_.outputs)
            if record["seconds"] >= SECONDS:
                seconds[task_.stage][record["node"]].append(each)
    for stage, by_node in seconds.items():
        for node, times in by_node.items():
            others = [time for other in by_node if other != node for time in by_node[other]]
            if min(len(times), len(others)) >= TASKS and median(times) > SLOW * median(others):
                ratio = median(times) / median(others)
                found.setdefault(node, f"{stage} took {ratio:.1f} times as long there as elsewhere")
    return found


def without(wanted: dict[str, Resources], nodes: Iterable[str]) -> dict[str, Resources]:
    """Resources of stages that leave out nodes, beside those that they leave out already."""
    names = ",".join(sorted(nodes))
    if not names:
        return wanted
    return {
        stage: replace(each, exclude=f"{each.exclude},{names}" if each.exclude else names)
        for stage, each in wanted.items()
    }
