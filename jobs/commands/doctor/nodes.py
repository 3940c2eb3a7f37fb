"""What two nodes find: a small job of two tasks tries the folder, Python and Slurm there."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from skerch.files import cause
from skerch.jobs.commands.doctor.finding import Finding
from skerch.jobs.commands.doctor.folder import ELSEWHERE, judge, new_folder, program, read
from skerch.jobs.commands.doctor.pair import versions
from skerch.jobs.commands.doctor.slurm import Cluster
from skerch.jobs.config.resources import Resources
from skerch.jobs.launchers.slurm import facts, scheduler
from skerch.jobs.launchers.slurm.facts import Partition
from skerch.jobs.launchers.slurm.programs import SlurmError
from skerch.jobs.launchers.slurm.scheduler import ENDED, WAITING
from skerch.jobs.launchers.slurm.script import checked_setup

PATIENCE = 120  # seconds for which the tasks wait for each other
MINUTES = 10  # of the job
LATE = 20.0  # seconds after a job's end in which its files are to be seen here
MEMORY = 2000  # MiB, of which importing torch for GPUs needs the most


def try_nodes(
    parent: Path, cluster: Cluster, wanted: Resources, wait: float, say: Callable[[str], object]
) -> Iterator[Finding]:
    """What a job finds, which may wait in the queue for `wait` seconds; it is gone afterwards."""
    name = wanted.partition or cluster.default.name
    partition = next((p for p in cluster.partitions if p.name == name), cluster.default)
    nodes = min(2, partition.nodes - partition.out)
    if not nodes:
        yield Finding("job", "note", f"not known: no node of {name} is in service")
        return
    folder, job = new_folder(parent), None
    try:
        folder.mkdir()
        begin = time.monotonic()
        job = facts.submit(_script(folder, wanted), _options(folder, partition, wanted, nodes))
        say(f"job {job} of {name} tries two nodes; it may wait {wait:g} s for them")
        state = _end(job, folder, wait)
        took = time.monotonic() - begin
        if state in ENDED:
            job = None
        yield from _findings(folder, name, nodes, state, took, wanted)
    except SlurmError as error:
        remedy = "change what `measure` asks for in the cluster file"
        if wanted == Resources():
            remedy = "give a cluster file with what jobs need: --cluster"
        yield Finding("job", "fault", str(error), remedy)
    except OSError as error:
        yield Finding("job", "fault", f"{error.filename}: {cause(error)}", ELSEWHERE)
    finally:
        with suppress(SlurmError):
            scheduler.cancel([job] if job else [])
        shutil.rmtree(folder, ignore_errors=True)


def _options(folder: Path, partition: Partition, wanted: Resources, nodes: int) -> list[str]:
    """What the job asks for: as little as it can, of what the cluster file has for measurements."""
    given = {
        "partition": wanted.partition,
        "account": wanted.account,
        "qos": wanted.qos,
        "constraint": wanted.constraint,
        "exclude": wanted.exclude,
        "gpus-per-node": wanted.gpus or None,
        "mem": None if {"mem-per-cpu", "mem-per-gpu"} & wanted.sbatch.keys() else f"{MEMORY}M",
        "job-name": "skerch-doctor",
        "nodes": nodes,
        "ntasks": 2,
        "ntasks-per-node": 2 // nodes,
        "time": min(MINUTES, partition.longest or MINUTES),
        "output": str(folder / "log").replace("%", "%%"),
        "chdir": folder,
    }
    options = [f"--{key}={value}" for key, value in given.items() if value is not None]
    for key, value in wanted.sbatch.items():
        options.append(f"--{key}" if value is True else f"--{key}={value}")
    return [*options, "--no-requeue"]


def _script(folder: Path, wanted: Resources) -> str:
    said, log = (str(folder / name).replace("%", "%%") for name in ("said", "log"))
    step = ["srun", "--ntasks=2", f"--output={said}.%t", f"--error={log}.%t", *wanted.srun]
    return "\n".join(
        ["#!/bin/bash", *checked_setup(wanted), shlex.join(step + program(folder, PATIENCE)), ""]
    )


def _end(job: str, folder: Path, wait: float) -> str:
    """The state of a job once it has ended, or why it has not, where it waits too long."""
    begin, started = time.monotonic(), None
    while True:
        state, reason = facts.state(job)
        if state in ENDED or not state:
            return state or "COMPLETED"
        now = time.monotonic()
        if state in WAITING and now - begin > wait:
            return f"it waits: {reason or state}"
        if state not in WAITING:
            started = started or now
            if now - started > MINUTES * 60 + 60:
                return f"it does not end: {state}"
        time.sleep(1.0 if now - begin < 20 else 5.0)


def _findings(
    folder: Path, name: str, nodes: int, state: str, took: float, wanted: Resources
) -> Iterator[Finding]:
    if state.startswith("it "):
        remedy = "give it longer, --wait 3600, or another partition by --cluster"
        yield Finding("job", "note", f"not known: after {took:.0f} s {state}", remedy)
        return
    both = _reports(folder, state)
    if len(both) < 2:
        remedy = f"nodes must see it: {ELSEWHERE}"
        found = f"the job in {name} ended ({state}) and left nothing in {folder.parent}"
        if words := _log(folder):
            remedy = f"nodes must have {sys.executable} and what it needs, or `setup` must load it"
            found = f"the job in {name} ended ({state}): {words}"
        elif both:
            found = f"of both tasks of the job, that on {both[0]['node']} alone has left something"
        yield Finding("job", "fault", found, remedy)
        return
    where = " and ".join(dict.fromkeys(report["node"] for report in both))
    yield Finding("job", "ok", f"in {name}, on {where}: done {took:.0f} s after it was submitted")
    yield from judge(*both)
    if nodes < 2:
        yield Finding("two nodes", "note", f"not known: {name} has one node in service")
    for report in both[:nodes]:
        yield _python(report, wanted)
    if "refusal" in both[0]:
        yield _submits(both[0])


def _reports(folder: Path, state: str) -> list[dict[str, Any]]:
    """What the tasks have printed; a network file system may show it late."""
    end = time.monotonic() + LATE
    while True:
        os.listdir(folder)
        paths = [path for number in (0, 1) if (path := folder / f"said.{number}").exists()]
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
        reports = [report for text in texts if (report := read(text))]
        failed = state != "COMPLETED" and _log(folder)
        if len(reports) == 2 or failed or time.monotonic() > end:
            return reports
        time.sleep(0.2)


def _log(folder: Path) -> str:
    """The last line that a job or its tasks have left."""
    lines = []
    for path in sorted(folder.glob("log*")):
        lines += path.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
    return " ".join(lines)[:300]


def _python(report: dict[str, Any], wanted: Resources) -> Finding:
    """Whether the Python of a node is that of here, and what PyTorch sees there."""
    check = f"Python on {report['node']}"
    if "torch" not in report:
        words = report.get("no torch", "it ended there while torch was imported")
        remedy = "load what it needs in `setup` of the cluster file, or install it on a node"
        return Finding(check, "fault", f"torch cannot be imported: {words}", remedy)
    others = [f"{n} {report[n]}, here {v}" for n, v in versions().items() if report[n] != v]
    if others:
        remedy = "use one environment, which nodes see, too"
        return Finding(check, "fault", "; ".join(others), remedy)
    if wanted.gpus and not report["gpus"]:
        remedy = "install torch for the GPU driver of the nodes"
        return Finding(check, "fault", "it was given a GPU, and torch sees none", remedy)
    gpus = ", ".join(report["gpus"]) or "no GPU, as none is asked for"
    found = f"{sys.executable} as here; import torch {report['import']:.1f} s; {gpus}"
    return Finding(check, "ok", found)


def _submits(report: dict[str, Any]) -> Finding:
    """Whether a job may submit others."""
    if words := report["refusal"]:
        remedy = "healing does not work from jobs: type `submit` again where a task died"
        return Finding("jobs submit", "warning", f"on {report['node']}: {words}", remedy)
    return Finding("jobs submit", "ok", f"{report['node']} may submit jobs, as healing does")
