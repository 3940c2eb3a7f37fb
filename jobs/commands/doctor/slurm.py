"""What Slurm's settings mean for skerch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from skerch.jobs.commands.doctor.finding import Finding
from skerch.jobs.launchers.slurm import facts, programs, scheduler
from skerch.jobs.launchers.slurm.facts import Partition
from skerch.jobs.launchers.slurm.programs import SlurmError
from skerch.jobs.pipeline.ranges import counted

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
SLOW = 5.0  # seconds of squeue that deserve a word
USUAL = 1000  # elements of an array where Slurm's MaxArraySize is what it is by default
Settings = Mapping[str, str]


@dataclass(frozen=True)
class Cluster:
    """What is known of a cluster whose controller answers."""

    settings: Settings
    partitions: list[Partition]

    @property
    def default(self) -> Partition:
        """The partition of jobs that name none."""
        return next((each for each in self.partitions if each.default), self.partitions[0])


def ask() -> tuple[Cluster | None, list[Finding]]:
    """The cluster, if there is one that answers, and findings on its commands and controller."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if len(missing) == len(COMMANDS):
        remedy = "use a login node, or load its module; without Slurm there are `run` and MPI"
        return None, [Finding("commands", "note", f"none of {', '.join(COMMANDS)} is here", remedy)]
    if missing:
        remedy = "install them, or use a login node"
        return None, [Finding("commands", "fault", f"{', '.join(missing)} not on PATH", remedy)]
    try:
        seconds = facts.queue_seconds()
        cluster = Cluster(facts.settings(), facts.partitions(hidden=True))
    except SlurmError as error:
        return None, [Finding("controller", "fault", str(error), "ask for it, or try again later")]
    version = cluster.settings.get("SLURM_VERSION", "of a version not known")
    found = f"Slurm {version}; squeue answers in {seconds:.2f} s"
    if seconds > SLOW:
        remedy = f"submit large arrays when it is less busy; skerch waits {programs.PATIENCE:g} s"
        return cluster, [Finding("controller", "warning", found, remedy)]
    return cluster, [Finding("controller", "ok", found)]


def findings(cluster: Cluster) -> Iterator[Finding]:
    """What settings mean, one by one."""
    settings = cluster.settings
    try:
        own = facts.settings_of_partitions()
    except SlurmError:
        own = {}
    for partition in cluster.partitions:
        yield _partition(partition, own.get(partition.name, {}), settings)
    yield _arrays(settings)
    yield from _accounting(settings)
    yield _memory(settings)
    yield _preemption(settings, own)


def _partition(each: Partition, own: Settings, settings: Settings) -> Finding:
    kinds = ", ".join(
        f"{counted(kind.number, 'node')} of {counted(kind.cpus, 'CPU')}, {kind.memory:,} MiB"
        f"{kind.resources and f', {kind.resources}'}"
        for kind in each.kinds
    )
    limit = f"at most {each.time}" if each.longest else "no time limit"
    words = f"{'the default; ' if each.default else ''}{kinds}; {limit}; {_given(own, settings)}"
    if each.out >= each.nodes:
        remedy = f"name another partition; sinfo --list-reasons --partition={each.name} says why"
        return Finding(each.name, "warning", f"{words}; none in service", remedy)
    out = f"; {counted(each.out, 'node')} out of service" if each.out else ""
    return Finding(each.name, "ok", words + out)


def _given(own: Settings, settings: Settings) -> str:
    """The memory of a job that asks for none."""
    for where in (own, settings):
        for unit in ("CPU", "GPU", "Node"):
            if re.fullmatch(r"[1-9]\d*", number := where.get(f"DefMemPer{unit}", "")):
                return f"{int(number):,} MiB a {unit.replace('N', 'n')} by default"
    return "all memory of a node by default"


def _arrays(settings: Settings) -> Finding:
    most = settings.get("MaxArraySize", "")
    if not most.isdecimal():
        return Finding("arrays", "note", "not known: scontrol tells no MaxArraySize")
    if most == "0":
        remedy = "ask for MaxArraySize, or use launcher.name: mpi within a job of your own"
        return Finding("arrays", "fault", "MaxArraySize is 0: there are none", remedy)
    size, jobs = scheduler.array_size(), settings.get("MaxJobCount", "not known")
    found = (
        f"MaxArraySize {most}: {counted(size, 'task')} an array at most; MaxJobCount {jobs}, "
        "each task a job"
    )
    if size < USUAL:
        remedy = (
            f"a measurement of more than {counted(size, 'task')} is several arrays; a larger "
            "launcher.blocks_per_task makes them fewer"
        )
        return Finding("arrays", "warning", found, remedy)
    return Finding("arrays", "ok", found)


def _accounting(settings: Settings) -> Iterator[Finding]:
    age = settings.get("MinJobAge", "some seconds")
    kind = settings.get("AccountingStorageType", "").removeprefix("accounting_storage/")
    lost = f"{age} after its end (MinJobAge) Slurm forgets why a job died; its log stays"
    remedy = "run `status` soon after a failure"
    if kind in ("", "none"):
        yield Finding("accounting", "warning", f"none: {lost}", remedy)
        return
    try:
        facts.ask_accounting()
    except SlurmError as error:
        yield Finding("accounting", "warning", f"{kind}, but {error} {lost}", remedy)
        return
    yield Finding("accounting", "ok", f"{kind}; why a job died stays known")
    try:
        accounts = facts.associations(settings.get("ClusterName", ""))
        qualities = facts.qualities()
    except SlurmError as error:
        yield Finding("account", "note", f"not known: {error}")
        return
    enforced = settings.get("AccountingStorageEnforce", "")
    if not accounts:
        needed = "associations" in enforced
        yield Finding(
            "account",
            "fault" if needed else "note",
            f"you have none{', and jobs need one' if needed else '; jobs do not need one'}",
            "ask for an account" if needed else "",
        )
        return
    names = ", ".join(dict.fromkeys(row["Account"] for row in accounts))
    limits = _limits(accounts, qualities)
    if not limits or not re.search("limits|safe", enforced):
        yield Finding("account", "ok", f"{names}; no limit on submitted jobs")
        return
    least, of = min(limits)
    yield Finding(
        "account",
        "warning" if least < USUAL else "ok",
        f"{names}; at most {least} jobs submitted at once ({of}); tasks of arrays count as jobs",
        "a larger launcher.blocks_per_task makes tasks fewer" if least < USUAL else "",
    )


def _limits(
    accounts: list[dict[str, str]], qualities: Mapping[str, Settings]
) -> list[tuple[int, str]]:
    """What limits the user's submitted jobs, and whose limit it is."""
    found = [(row.get("MaxSubmitJobs", ""), f"account {row['Account']}") for row in accounts]
    names = {name for row in accounts for name in row.get("QOS", "").split(",")}
    for name in names & qualities.keys():
        found.append((qualities[name].get("MaxSubmitJobsPerUser", ""), f"qos {name}"))
    return [(int(most), of) for most, of in found if most.isdecimal()]


def _memory(settings: Settings) -> Finding:
    by_cgroup = (
        "cgroup" in settings.get("TaskPlugin", "")
        and settings.get("ConstrainRAMSpace", "").lower() == "yes"
    )
    if by_cgroup or "OverMemoryKill" in settings.get("JobAcctGatherParams", ""):
        way = "its cgroup" if by_cgroup else "OverMemoryKill"
        return Finding(
            "out of memory", "ok", f"a job beyond its memory is killed, and said so ({way})"
        )
    return Finding(
        "out of memory",
        "warning",
        "nothing keeps a job to its memory: a node that has none left kills any process",
        "ask for as much as `plan` says",
    )


def _preemption(settings: Settings, own: Mapping[str, Settings]) -> Finding:
    mode = settings.get("PreemptMode", "OFF")
    modes = {name: row["PreemptMode"] for name, row in own.items() if "PreemptMode" in row}
    cancelling = sorted(name for name, each in modes.items() if "CANCEL" in each)
    requeue = settings.get("JobRequeue", "1") != "0"
    asked = "" if requeue else "; JobRequeue is 0, and skerch's jobs ask for it themselves"
    if settings.get("PreemptType", "").endswith("none") or mode == "OFF":
        return Finding("preemption", "ok", f"none; a job whose node fails is queued again{asked}")
    if "CANCEL" in mode or cancelling:
        where = f" in {', '.join(cancelling)}" if cancelling else ""
        return Finding(
            "preemption",
            "warning",
            f"{mode}: a preempted job{where} is cancelled, not queued again{asked}",
            "`submit` again adds what is missing",
        )
    return Finding("preemption", "ok", f"{mode}: a preempted job goes on later{asked}")
