"""Can a cluster give what a cluster file asks for?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from skerch.jobs.commands.doctor.finding import Finding
from skerch.jobs.commands.doctor.slurm import Cluster
from skerch.jobs.config.resources import Resources
from skerch.jobs.config.stages import STAGES
from skerch.jobs.launchers.slurm import facts, script
from skerch.jobs.launchers.slurm.facts import Nodes, Partition
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.pipeline.ranges import counted


def findings(asked: dict[str, Resources], cluster: Cluster, folder: Path) -> Iterator[Finding]:
    """A finding for each group of stages that ask for the same."""
    left = {stage: replace(wanted, throttle=None) for stage, wanted in asked.items()}
    while left:
        wanted = next(iter(left.values()))
        stages = [stage for stage, other in left.items() if other == wanted]
        left = {stage: other for stage, other in left.items() if other != wanted}
        yield _finding(wanted, stages, cluster, folder)


def _finding(wanted: Resources, stages: list[str], cluster: Cluster, folder: Path) -> Finding:
    name = wanted.partition or cluster.default.name
    stage = next((each for each in stages if not STAGES[each].resources_of), stages[0])
    check = stage + (f" + {len(stages) - 1}" if len(stages) > 1 else "")
    partition = next((each for each in cluster.partitions if each.name == name), None)
    beyond = _beyond(wanted, partition) if partition else ""
    remedy = f"change it for {stage} in the cluster file; sinfo --long --partition={name}"
    if partition is None:
        names = ", ".join(each.name for each in cluster.partitions)
        remedy = f"name one of {names}"
    if beyond:
        return Finding(check, "fault", beyond, remedy)
    job = Submission("doctor", "doctor", stage, None, memory=wanted.memory)
    text = script.script(job, wanted, folder, folder / "log")
    if refused := facts.refusal(text):
        return Finding(check, "fault", refused, remedy)
    return Finding(check, "ok", f"{name} takes {_asked(wanted)}")


def _beyond(wanted: Resources, partition: Partition) -> str:
    """What a partition does not have, in a sentence; "" where it has all."""
    if partition.longest and wanted.minutes and wanted.minutes > partition.longest:
        return f"time is {wanted.minutes} min, and {partition.name} allows {partition.longest}"
    if any(_fits(wanted, kind) for kind in partition.kinds):
        return ""
    have = " or ".join(_of(kind.cpus, kind.memory, kind.gpus) for kind in partition.kinds)
    asked = _of(wanted.cpus, wanted.memory, wanted.gpus)
    return f"it asks for {asked}; a node of {partition.name} has {have}"


def _fits(wanted: Resources, kind: Nodes) -> bool:
    return (
        (wanted.cpus or 1) <= kind.cpus
        and (wanted.memory or 0) <= kind.memory
        and (wanted.gpus or 0) <= kind.gpus
    )


def _asked(wanted: Resources) -> str:
    what = _of(wanted.cpus, wanted.memory, wanted.gpus)
    limit = f"{wanted.minutes} min" if wanted.minutes else "its default time"
    return f"{what} for {limit}" if what else limit


def _of(cpus: int | None, memory: int | None, gpus: int | None) -> str:
    parts = [cpus and counted(cpus, "CPU"), memory and f"{memory:,} MiB"]
    return ", ".join(part for part in [*parts, gpus and counted(gpus, "GPU")] if part)
