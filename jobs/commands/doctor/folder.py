"""Is a folder's file system fit for run directories? Two processes try it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from skerch.errors import UsageError
from skerch.jobs.commands.doctor.finding import Finding
from skerch.jobs.commands.doctor.pair import LINKS

PATIENCE = 20.0  # seconds for which processes here wait for each other
BOUND = 60.0  # seconds after which they are ended
SLOW = 5.0  # seconds until a file is seen, or 1 MiB is on disk, that deserve a word
ROOM = 10 * 2**30  # bytes
OF_ONE_MACHINE = ("tmpfs", "ramfs")
ELSEWHERE = "give run_dir on another file system: the cluster's documentation names them"

Reports = list[dict[str, Any]]  # of the first process, and of the second


def new_folder(parent: Path) -> Path:
    """A name for a folder of this command's."""
    return parent / f".skerch-doctor-{uuid.uuid4().hex[:8]}"


def try_here(parent: Path) -> Iterator[Finding]:
    """What two processes of this machine find in a folder; raises UsageError where there is none.

    They look for it, too: this process would wait for ever for a dead server.
    """
    folder = new_folder(parent)
    program = [sys.executable, "-m", "skerch.jobs.commands.doctor.pair", str(folder), str(PATIENCE)]
    both = [
        subprocess.Popen(
            [*program, number],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        for number in ("0", "1")
    ]
    reports = []
    for process in both:
        said = ""
        try:
            said, words = process.communicate(timeout=BOUND)
        except subprocess.TimeoutExpired:
            process.kill()  # which does not help where the system waits for a dead server
            words = f"It does not answer within {BOUND:g} s."
        words = words.strip() or f"A process ended with status {process.returncode}."
        reports.append(read(said) or {"error": words})
    if any(report.get("no folder") for report in reports):
        raise UsageError(f"There is no folder {parent} to look into; make it, or name another.")
    with suppress(OSError):
        if all("node" in report for report in reports):  # else it may take for ever
            shutil.rmtree(folder)
    yield from _room(parent, reports)
    yield from judge(reports)


def read(said: str) -> dict[str, Any] | None:
    """The last report that a process has printed, if any."""
    for line in reversed(said.splitlines()):
        with suppress(ValueError):
            report = json.loads(line)
            if isinstance(report, dict):
                return report
    return None


def judge(reports: Reports) -> Iterator[Finding]:
    """What the reports of two processes say of the file system that they share."""
    first, second = reports
    if errors := dict.fromkeys(report["error"] for report in reports if report["error"]):
        words = " ".join(error.splitlines()[-1] for error in errors)
        yield Finding("files", "fault", words, ELSEWHERE)
    if "seen" in first:
        yield _seen(first)
    if "reads" in second:
        yield _rename(first, second)
    if "lock" in second:
        yield _lock(first["lock"], second["lock"])
    if "links" in first and "links" in second:
        yield _links(first["links"], second["links"])


def _seen(report: dict[str, Any]) -> Finding:
    if not report["whole"]:
        found = "the one reads other bytes than the other wrote"
        return Finding("files", "fault", found, ELSEWHERE)
    found = (
        f"1 MiB written and flushed in {report['written']:.3f} s, and seen by the other after "
        f"{report['seen']:.2f} s"
    )
    if max(report["written"], report["seen"]) > SLOW:
        remedy = (
            "a task that does not see in time what another wrote fails; `submit` again, or "
            f"{ELSEWHERE}"
        )
        return Finding("files", "warning", found, remedy)
    return Finding("files", "ok", found)


def _rename(first: dict[str, Any], second: dict[str, Any]) -> Finding:
    found = f"a file was replaced {first['replaced']:,} times, and read {second['reads']:,} times"
    if second["damaged"]:
        found = f"{found}, of which {second['damaged']:,} found no whole file"
        return Finding("rename", "fault", found, ELSEWHERE)
    lost = "" if second["old"] else "; who has the old one open loses it"
    return Finding("rename", "ok", f"{found}, each time whole{lost}")


def _lock(first: str, second: str) -> Finding:
    remedy = "start only one `run` or `submit` at a time in a run directory"
    if first != "had":
        return Finding("locks", "warning", f"there are none: {first}", remedy)
    if second == "had":
        return Finding("locks", "warning", "both have the same lock at once", remedy)
    if second != "kept out":
        return Finding("locks", "warning", f"there are none for the other: {second}", remedy)
    return Finding("locks", "ok", "one keeps the other out")


def _links(first: list[int] | str, second: list[int] | str) -> Finding:
    for made in (first, second):
        if isinstance(made, str):
            return Finding("links", "note", f"none are possible: {made}; files are renamed instead")
    if sorted([*first, *second]) != list(range(LINKS)):
        return Finding("links", "fault", "both have made the same file", ELSEWHERE)
    return Finding("links", "ok", "of two that make the same file, one does")


def _room(parent: Path, reports: Reports) -> Iterator[Finding]:
    report = next((each for each in reports if "free" in each), None)
    if report is None:
        return
    kind, free = report["type"] or "of a type not known", report["free"]
    words = f"{parent}: {kind}, {free / 2**30:,.1f} GiB free; a quota is not known"
    if kind in OF_ONE_MACHINE:
        yield Finding("room", "warning", words, f"this is memory of one machine: {ELSEWHERE}")
    elif free < ROOM:
        yield Finding("room", "warning", words, "`plan EXPERIMENT` tells what a run takes")
    else:
        yield Finding("room", "ok", words)
