"""What Slurm says of a cluster: its settings, its partitions, and what a user may submit."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from skerch.jobs.launchers.slurm import programs
from skerch.jobs.launchers.slurm.programs import SlurmError

PATIENCE = 30.0  # seconds for an answer; nothing is asked twice


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike."""

    number: int
    cpus: int
    memory: int  # MiB
    resources: str  # generic ones: gpu:a100:4

    @property
    def gpus(self) -> int:
        """How many GPUs a node has, of all types."""
        return sum(map(int, re.findall(r"gpu:(?:[^:,(]+:)?(\d+)", self.resources)))


@dataclass(frozen=True)
class Partition:
    """A partition as sinfo has it."""

    name: str
    default: bool
    time: str
    longest: int | None  # minutes; None where there is no limit
    kinds: tuple[Nodes, ...]
    out: int  # of its nodes: down, drained or reserved

    def serves(self, name: str | None) -> bool:
        """Whether jobs go there that name this partition, or none."""
        return self.name == name or (name is None and self.default)

    @property
    def nodes(self) -> int:
        """How many nodes it has."""
        return sum(kind.number for kind in self.kinds)

    @property
    def cpus(self) -> int:
        """The CPUs of its least node."""
        return min(kind.cpus for kind in self.kinds)

    @property
    def memory(self) -> int:
        """The memory of its least node, in MiB."""
        return min(kind.memory for kind in self.kinds)

    @property
    def gpus(self) -> str:
        """Its generic resources, where GPUs are among them."""
        return next((kind.resources for kind in self.kinds if "gpu" in kind.resources), "")


def partitions(*, hidden: bool = False) -> list[Partition]:
    """The partitions that take jobs; raises SlurmError where Slurm does not tell."""
    found: dict[str, Partition] = {}
    command = ["sinfo", *(["--all"] if hidden else []), "-h", "-e", "-o", "%P|%D|%c|%m|%l|%a|%G|%F"]
    for line in _asked(command).splitlines():
        fields = [*line.split("|"), ""][:8]
        if len(fields) < 8 or fields[5] != "up":
            continue
        name, number, cpus, memory, limit, _, resources, states = fields
        kind = Nodes(int(number), int(cpus.rstrip("+")), int(memory.rstrip("+")), _said(resources))
        out = int((states.split("/") + ["0"] * 3)[2])  # allocated, idle, others, all
        known = found.get(name) or Partition(
            name.rstrip("*"), name.endswith("*"), limit, _minutes(limit), (), 0
        )
        found[name] = replace(known, kinds=(*known.kinds, kind), out=known.out + out)
    if not found:
        raise SlurmError("sinfo names no partition that takes jobs.")
    return list(found.values())


def _minutes(limit: str) -> int | None:
    """The minutes of [days-][hours:]minutes:seconds; None for what is no number."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not found:
        return None
    days, hours, minutes = (int(part or 0) for part in found.groups()[:3])
    return (days * 24 + hours) * 60 + minutes


def settings() -> dict[str, str]:
    """The cluster's settings by name; empty text for one that is not set."""
    text = _asked(["scontrol", "show", "config"])
    return {key: _said(value) for key, value in re.findall(r"^(\w+)\s*= *(.*?) *$", text, re.M)}


def ask_accounting() -> None:
    """Raise SlurmError where sacct tells nothing of ended jobs."""
    _asked(["sacct", "-n", "-X", "-u", str(os.getuid()), "-o", "JobID"])


def associations(cluster: str) -> list[dict[str, str]]:
    """The user's associations with a cluster, one per account: what accounting limits jobs by."""
    command = ["sacctmgr", "-n", "-P", "show", "associations", f"user={getpass.getuser()}"]
    return _table([*command, f"cluster={cluster}"], ("Account", "MaxSubmitJobs", "QOS"))


def qualities() -> dict[str, dict[str, str]]:
    """The qualities of service by name, with what limits jobs of a user in each."""
    rows = _table(["sacctmgr", "-n", "-P", "show", "qos"], ("Name", "MaxSubmitJobsPerUser"))
    return {row["Name"]: row for row in rows}


def most_memory(partition: str | None) -> int:
    """The memory, in MiB, of the largest node of a partition, by default of the default one."""
    kinds = [kind for each in partitions() if each.serves(partition) for kind in each.kinds]
    return max((kind.memory for kind in kinds), default=0)


def _table(command: list[str], columns: Sequence[str]) -> list[dict[str, str]]:
    said = _asked([*command, f"format={','.join(columns)}"])
    return [dict(zip(columns, line.split("|"), strict=False)) for line in said.splitlines()]


def refusal(script: str, options: Sequence[str] = ()) -> str:
    """Why Slurm would not take a job, which is not submitted; empty if it would."""
    try:
        _asked(["sbatch", "--test-only", *options], script)
    except SlurmError as error:
        return str(error)
    return ""


def submit(script: str, options: Sequence[str]) -> str:
    """The id of a job that is submitted, of no run."""
    said = _asked(["sbatch", "--parsable", *options], script)
    return said.strip().partition(";")[0]


def state(job: str) -> tuple[str, str]:
    """A job's state, and why it waits; no state where Slurm has forgotten it."""
    command = ["squeue", "--all", "-h", "-t", "all", "-j", job, "-o", "%T|%r"]
    try:
        said = _asked(command).strip()
    except SlurmError as error:
        if "Invalid job id" not in str(error):
            raise
        return "", ""
    return said.partition("|")[0], _said(said.partition("|")[2])


def _asked(command: list[str], script: str | None = None) -> str:
    return programs.call_once(command, PATIENCE, script).stdout


def _said(words: str) -> str:
    return "" if words in ("(null)", "N/A", "None") else words
