"""What Slurm's settings mean for skerch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping

from skerch.jobs.commands.doctor import Finding
from skerch.jobs.launchers.slurm import facts, scheduler
from skerch.jobs.launchers.slurm.facts import Partition
from skerch.jobs.launchers.slurm.programs import SlurmError
from skerch.jobs.pipeline.ranges import counted

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
USUAL = 1000  # elements of an array where Slurm's MaxArraySize is what it is by default
FEWER = "a larger launcher.blocks_per_task makes tasks fewer"


def ask() -> tuple[list[Partition], list[Finding]]:
    """The partitions, none where no Slurm answers, and what is found of it."""
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        found = f"not on PATH: {', '.join(missing)}"
        remedy = "use a login node, or load its module; without Slurm there are `run` and MPI"
        none = len(missing) == len(COMMANDS)
        return [], [Finding("commands", "note" if none else "fault", found, remedy)]
    try:
        scheduler.ask_queue(facts.PATIENCE)  # whose answer `submit` must understand
        settings, partitions = facts.settings(), facts.partitions(hidden=True)
    except SlurmError as error:
        return [], [Finding("controller", "fault", str(error), "ask for it, or try again later")]
    version = settings.get("SLURM_VERSION", "of a version not known")
    controller = Finding("controller", "ok", f"Slurm {version} answers")
    return partitions, [controller, *map(_partition, partitions), *findings(settings)]


def findings(settings: Mapping[str, str]) -> Iterator[Finding]:
    """What settings mean, one by one."""
    yield _arrays(settings)
    accounting = _accounting(settings)
    yield accounting
    if accounting.state == "ok":
        yield _account(settings)


def _partition(each: Partition) -> Finding:
    kinds = ", ".join(
        f"{counted(kind.number, 'node')} of {counted(kind.cpus, 'CPU')}, {kind.memory:,} MiB"
        f"{kind.resources and f', {kind.resources}'}"
        for kind in each.kinds
    )
    limit = f"at most {each.time}" if each.longest else "no time limit"
    words = f"{'the default; ' if each.default else ''}{kinds}; {limit}"
    if each.out:
        words += f"; {counted(each.out, 'node')} out of service"
    if each.out < each.nodes:
        return Finding(each.name, "ok", words)
    remedy = f"name another partition; sinfo --list-reasons --partition={each.name} says why"
    return Finding(each.name, "warning", words, remedy)


def _arrays(settings: Mapping[str, str]) -> Finding:
    most = settings.get("MaxArraySize", "not known")
    if most == "0":
        remedy = "ask for MaxArraySize, or use launcher.name: mpi within a job of your own"
        return Finding("arrays", "fault", "MaxArraySize is 0: there are none", remedy)
    tasks = counted(size := scheduler.array_size(), "task")
    found = f"MaxArraySize {most}: {tasks} an array at most"
    if size >= USUAL:
        return Finding("arrays", "ok", found)
    remedy = f"a measurement of more than {tasks} is several arrays; {FEWER}"
    return Finding("arrays", "warning", found, remedy)


def _accounting(settings: Mapping[str, str]) -> Finding:
    kind = settings.get("AccountingStorageType", "").removeprefix("accounting_storage/")
    found = "none:"
    if kind not in ("", "none"):
        try:
            facts.ask_accounting()
            return Finding("accounting", "ok", f"{kind}; why a job died stays known")
        except SlurmError as error:
            found = f"{kind}, but {error}"
    age = settings.get("MinJobAge", "some seconds")
    found += f" {age} after its end (MinJobAge) Slurm forgets why a job died; its log stays"
    return Finding("accounting", "warning", found, "run `status` soon after a failure")


def _account(settings: Mapping[str, str]) -> Finding:
    """The user's accounts, and the least limit on jobs that are submitted at once."""
    try:
        accounts = facts.associations(settings.get("ClusterName", ""))
        qualities = facts.qualities()
    except SlurmError as error:
        return Finding("account", "note", f"not known: {error}")
    enforced = settings.get("AccountingStorageEnforce", "")
    if not accounts and "associations" in enforced:
        return Finding("account", "fault", "you have none, and jobs need one", "ask for an account")
    names = ", ".join(dict.fromkeys(row["Account"] for row in accounts)) or "none"
    limits = [(row.get("MaxSubmitJobs", ""), f"account {row['Account']}") for row in accounts]
    for name in {name for row in accounts for name in row.get("QOS", "").split(",")}:
        limits.append((qualities.get(name, {}).get("MaxSubmitJobsPerUser", ""), f"qos {name}"))
    known = [(int(most), of) for most, of in limits if most.isdecimal()]
    if not known or not re.search("limits|safe", enforced):
        return Finding("account", "ok", f"{names}; no limit on submitted jobs")
    least, of = min(known)
    found = f"{names}; at most {least} jobs submitted at once ({of}); tasks of arrays count as jobs"
    if least >= USUAL:
        return Finding("account", "ok", found)
    return Finding("account", "warning", found, FEWER)
