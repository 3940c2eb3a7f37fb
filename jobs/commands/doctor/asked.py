"""Can a cluster give what a cluster file asks for?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from skerch.jobs.commands.doctor import Finding
from skerch.jobs.config.resources import Resources
from skerch.jobs.config.stages import STAGES
from skerch.jobs.launchers.slurm import facts, script
from skerch.jobs.launchers.slurm.facts import Partition
from skerch.jobs.launchers.slurm.journal import Submission


def findings(
    asked: dict[str, Resources], partitions: list[Partition], folder: Path
) -> Iterator[Finding]:
    """A finding for each group of stages whose jobs ask for the same."""
    groups = defaultdict(list)
    for stage, wanted in asked.items():
        job = Submission("doctor", "doctor", "doctor", None, memory=wanted.memory)
        groups[script.script(job, wanted, folder, folder / "log")].append(stage)
    for text, stages in groups.items():
        stage = next((each for each in stages if not STAGES[each].resources_of), stages[0])
        check = stage + (f" + {len(stages) - 1}" if len(stages) > 1 else "")
        if refused := _beyond(asked[stage], partitions) or facts.refusal(text):
            remedy = f"change it for {stage} in the cluster file; above is what partitions have"
            yield Finding(check, "fault", refused, remedy)
        else:
            yield Finding(check, "ok", "Slurm takes such jobs")


def _beyond(wanted: Resources, partitions: list[Partition]) -> str:
    """Which time limit a job is beyond, if any: Slurm takes it, and lets it wait for ever."""
    for each in partitions:
        if each.serves(wanted.partition) and (wanted.minutes or 0) > (each.longest or math.inf):
            return f"time is {wanted.minutes} min, and {each.name} allows {each.longest}"
    return ""
