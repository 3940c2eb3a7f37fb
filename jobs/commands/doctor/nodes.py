"""What two nodes find: a small job of two tasks tries the folder, Python and Slurm there."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from skerch.files import cause
from skerch.jobs.commands.doctor import Finding
from skerch.jobs.commands.doctor.folder import findings, new_folder, program, reports
from skerch.jobs.commands.doctor.pair import ELSEWHERE, versions
from skerch.jobs.config.resources import Resources
from skerch.jobs.launchers.slurm import facts, scheduler
from skerch.jobs.launchers.slurm.facts import Partition
from skerch.jobs.launchers.slurm.programs import SlurmError
from skerch.jobs.launchers.slurm.scheduler import ECHO, ENDED, WAITING
from skerch.jobs.launchers.slurm.script import checked_setup

PATIENCE = 120  # seconds for which the tasks wait for each other
MINUTES = 10  # of the job
LATE = 20.0  # seconds after a job's end in which its files are to be seen here
LOOKS = 2.0  # seconds between two looks at the job
MEMORY = 2000  # MiB, of which importing torch for GPUs needs the most


def try_nodes(
    parent: Path, partitions: list[Partition], wanted: Resources, wait: float
) -> Iterator[Finding]:
    """What a job finds, which may wait in the queue for `wait` seconds; it is gone afterwards."""
    partition = next((p for p in partitions if p.serves(wanted.partition)), partitions[0])
    name = wanted.partition or partition.name
    nodes = min(2, partition.nodes - partition.out)
    if not nodes:
        yield Finding("job", "note", f"not known: no node of {name} is in service")
        return
    folder, jobs = new_folder(parent), []
    try:
        folder.mkdir()
        step = shlex.join(["srun", "--ntasks=2", *wanted.srun, *program(folder, PATIENCE)])
        script = "\n".join(["#!/bin/bash", *checked_setup(wanted), step, ""])
        jobs = [facts.submit(script, _options(folder, partition, wanted, nodes))]
        yield from _findings(folder, name, wanted, *_end(jobs[0], wait))
    except SlurmError as error:
        remedy = "give what jobs need as `measure` of a cluster file: --cluster"
        yield Finding("job", "fault", str(error), remedy)
    except OSError as error:
        yield Finding("job", "fault", f"{error.filename}: {cause(error)}", ELSEWHERE)
    finally:
        with suppress(SlurmError):  # which is where it has ended
            scheduler.cancel(jobs)
        shutil.rmtree(folder, ignore_errors=True)


def _options(folder: Path, partition: Partition, wanted: Resources, nodes: int) -> list[str]:
    """What the job asks for: as little as it can, of what the cluster file has for measurements."""
    named = ("partition", "account", "qos", "constraint", "exclude")
    given: dict[str, Any] = {key: getattr(wanted, key) for key in named} | {
        "gpus-per-node": wanted.gpus,
        "mem": None if {"mem-per-cpu", "mem-per-gpu"} & wanted.sbatch.keys() else f"{MEMORY}M",
        "job-name": "skerch-doctor",
        "nodes": nodes,
        "ntasks": 2,
        "time": min(MINUTES, partition.longest or MINUTES),
        "output": str(folder / "log").replace("%", "%%"),
        "chdir": folder,
        "no-requeue": True,
    }
    given |= wanted.sbatch
    return [f"--{k}" if v is True else f"--{k}={v}" for k, v in given.items() if v]


def _end(job: str, wait: float) -> tuple[str, str]:
    """The state of a job once it has ended, or has waited too long, and why."""
    end = time.monotonic() + wait
    while True:
        state, reason = facts.state(job)
        if state in ENDED or not state or (state in WAITING and time.monotonic() > end):
            return state or "COMPLETED", reason
        time.sleep(LOOKS)


def _findings(
    folder: Path, name: str, wanted: Resources, state: str, reason: str
) -> Iterator[Finding]:
    if state in WAITING:
        remedy = "give it longer, --wait 3600, or another partition by --cluster"
        yield Finding("job", "note", f"not known: it waits: {reason or state}", remedy)
        return
    log = _log(folder, state)
    both = reports(log)
    if len(both) < 2:
        words = [line for line in log.splitlines() if not ECHO.match(line) and line[:1] != "{"]
        found, remedy = f"left nothing in {folder.parent}", f"nodes must see it: {ELSEWHERE}"
        if words:
            found = words[-1][:300]
            remedy = f"nodes must have {sys.executable} and what it needs, or `setup` must load it"
        yield Finding("job", "fault", f"the job in {name} ended ({state}): {found}", remedy)
        return
    there = {report["node"]: report for report in both}
    yield Finding("job", "ok", f"two tasks in {name}, on {' and '.join(there)}")
    yield from findings(both)
    if len(there) < 2:
        yield Finding("two nodes", "note", f"not known: {name} has one node in service")
    for report in there.values():
        yield _python(report, wanted)
    if refused := both[0].get("refusal"):
        remedy = "healing does not work from jobs: type `submit` again where a task died"
        yield Finding("jobs submit", "warning", refused, remedy)
    else:
        yield Finding("jobs submit", "ok", "a job may submit others, as healing does")


def _log(folder: Path, state: str) -> str:
    """What an ended job has printed; a network file system may show it late."""
    path, end, text = folder / "log", time.monotonic() + LATE, ""
    while time.monotonic() < end:
        if path.name in os.listdir(folder):
            text = path.read_text(encoding="utf-8", errors="replace")
        if len(reports(text)) == 2 or (text and state != "COMPLETED"):
            break
        time.sleep(0.2)
    return text


def _python(report: dict[str, Any], wanted: Resources) -> Finding:
    """Whether the Python of a node is that of here, and what PyTorch sees there."""
    others = [f"{n} {report.get(n)}, here {v}" for n, v in versions().items() if report.get(n) != v]
    if "torch" not in report:
        words = report.get("no torch", "it ended there while torch was imported")
        found = f"torch cannot be imported: {words}"
        remedy = "load what it needs in `setup` of the cluster file, or install it on a node"
    elif others:
        found, remedy = "; ".join(others), "use one environment, which nodes see, too"
    elif wanted.gpus and not report["gpus"]:
        found = "it was given a GPU, and torch sees none"
        remedy = "install torch for the GPU driver of the nodes"
    else:
        gpus = ", ".join(report["gpus"]) or "no GPU, as none is asked for"
        found = f"{sys.executable} as here; import torch {report['import']:.1f} s; {gpus}"
        return Finding(f"Python on {report['node']}", "ok", found)
    return Finding(f"Python on {report['node']}", "fault", found, remedy)
