"""What a job of the user's has on its nodes, in which tasks are to be steps."""

from __future__ import annotations

import math
import re
from dataclasses import astuple, dataclass

from skerch.jobs.launchers.slurm.programs import PATIENCE, SlurmError, call
from skerch.jobs.pipeline.ranges import counted, parse_ranges

ON_NODES = re.compile(r"Nodes=(\S+) CPU_IDs=(\S+) Mem=(\d+) GRES=(\S*)")  # of a job, alike ones
HOSTS = re.compile(r"[^,\[\]]+(?:\[([\d,-]+)\])?")  # in n[1-3,7],m1
GPUS = re.compile(r"gpu(?::[^:(,]+)?:(\d+)")


@dataclass(frozen=True)
class Room:
    """What there is for tasks, or what one needs."""

    cpus: int
    memory: float  # MiB; infinity where Slurm does not share it out
    gpus: int

    def holds(self, needs: list[Room]) -> bool:
        """Whether there is room for all of these."""
        return all(
            sum(getattr(need, name) for need in needs) <= most for name, most in vars(self).items()
        )

    def __str__(self) -> str:
        parts = [counted(self.cpus, "CPU")]
        parts += [f"{self.memory:.0f} MiB"] * (0 < self.memory < math.inf)
        parts += [counted(self.gpus, "GPU")] * (self.gpus > 0)
        return ", ".join(parts)


def allocation(job: str) -> tuple[Room, Room]:
    """What a job has in all, and the most that one of its nodes has for it.

    Raises SlurmError where it does not run.
    """
    said = call(["scontrol", "show", "job", "-d", job], patience=PATIENCE).stdout
    state = re.search(r"JobState=(\S+)", said)
    if state and state[1] != "RUNNING":
        raise SlurmError(
            f"Job {job} does not run ({state[1]}); get another, and run the same command again "
            "there: it goes on from here."
        )
    total, most = Room(0, 0, 0), Room(0, 0, 0)
    for nodes, cpus, memory, gres in ON_NODES.findall(said):
        gpus = sum(map(int, GPUS.findall(gres)))
        each = Room(len(parse_ranges(cpus)), float(memory) or math.inf, gpus)
        count = sum(len(parse_ranges(ids or "0")) for ids in HOSTS.findall(nodes))
        total = Room(*(a + count * b for a, b in zip(astuple(total), astuple(each), strict=True)))
        most = Room(*map(max, astuple(most), astuple(each)))
    return total, most
