"""A task is one process, whatever a node has for it."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace

import pytest

pytestmark = pytest.mark.slow

WHOLE_NODES = [
    ["resources.all.sbatch={exclusive: true}"],
    ["resources.all.partition=whole"],
    ["resources.all.setup=[export SLURM_NTASKS=3 SLURM_NPROCS=3 SLURM_OVERCOMMIT=1]"],
]


def processes(run):
    """How many processes have begun each task, by its log."""
    begun = re.compile(r"^\S+ \S+ starts on \S+, pid \d+$", re.MULTILINE)
    logs = run.path.glob("logs/seigh.step-*.log")
    return {path.name: len(begun.findall(path.read_text())) for path in logs}


@pytest.fixture
def ends_as_one(local, results_of):
    """A function that waits for a run's end and counts the processes of its tasks."""

    def check(run):
        run.wait_for_end()
        found = processes(run)
        assert found == dict.fromkeys(found, 1)
        assert len(found) >= 6
        assert results_of(run.path) == results_of(local)
        assert not list(run.path.glob("logs/*.lock"))

    return check


@pytest.mark.parametrize("wanted", WHOLE_NODES)
def test_a_task_is_one_process_on_a_whole_node(trained, ends_as_one, wanted):
    trained.submit(*wanted)
    ends_as_one(trained)


def test_a_task_is_one_process_where_cpus_are_threads_of_a_core(
    trained, ends_as_one, bring_up, devcluster
):
    with tempfile.TemporaryDirectory(prefix="skerch-slurm-") as folder:
        try:
            run = replace(trained, cluster=bring_up(folder, "--threads", 2))
            run.submit()
            ends_as_one(run)
        finally:
            devcluster("down", folder, check=False)
