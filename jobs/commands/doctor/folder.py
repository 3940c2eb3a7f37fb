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

PATIENCE = 20.0  # seconds for which processes here wait for each other
BOUND = 60.0  # seconds after which they are ended
SLOW = 5.0  # seconds until a file is seen, or 1 MiB is on disk, that deserve a word
ROOM = 10 * 2**30  # bytes
OF_ONE_MACHINE = ("tmpfs", "ramfs")
ELSEWHERE = "give run_dir on another file system: the cluster's documentation names them"


def new_folder(parent: Path) -> Path:
    """A name for a folder of this command's."""
    return parent / f".skerch-doctor-{uuid.uuid4().hex[:8]}"


def program(folder: Path, patience: float) -> list[str]:
    """The command of a process that tries a folder with another."""
    module = "skerch.jobs.commands.doctor.pair"
    return [sys.executable, "-m", module, str(folder), str(patience)]


def try_here(parent: Path) -> Iterator[Finding]:
    """What two processes of this machine find in a folder; raises UsageError where there is none.

    They look for it, too: this process would wait for ever for a dead server.
    """
    folder = new_folder(parent)
    both = [
        subprocess.Popen(
            [*program(folder, PATIENCE), number],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        for number in "01"
    ]
    reports = [_report(process) for process in both]
    if any(report.get("no folder") for report in reports):
        raise UsageError(f"There is no folder {parent} to look into; make it, or name another.")
    if all("node" in report for report in reports):  # else it may take for ever
        shutil.rmtree(folder, ignore_errors=True)
    if report := next((each for each in reports if "free" in each), None):
        yield _room(parent, report["type"] or "of a type not known", report["free"])
    yield from judge(*reports)


def _report(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        said, words = process.communicate(timeout=BOUND)
    except subprocess.TimeoutExpired:
        process.kill()  # which does not help where the system waits for a dead server
        return {"error": f"It does not answer within {BOUND:g} s."}
    return read(said) or {"error": words or f"A process ended with status {process.returncode}."}


def read(said: str) -> dict[str, Any] | None:
    """The last report that a process has printed, if any."""
    for line in reversed(said.splitlines()):
        with suppress(ValueError):
            report = json.loads(line)
            if isinstance(report, dict):
                return report
    return None


def _room(parent: Path, kind: str, free: int) -> Finding:
    words = f"{parent}: {kind}, {free / 2**30:,.1f} GiB free; a quota is not known"
    if kind in OF_ONE_MACHINE:
        return Finding("room", "warning", words, f"this is memory of one machine: {ELSEWHERE}")
    if free < ROOM:
        return Finding("room", "warning", words, "`plan EXPERIMENT` tells what a run takes")
    return Finding("room", "ok", words)


def judge(first: dict[str, Any], second: dict[str, Any]) -> Iterator[Finding]:
    """What the reports of two processes say of the file system that they share."""
    if errors := dict.fromkeys(each["error"] for each in (first, second) if each["error"]):
        words = " ".join(error.strip().splitlines()[-1] for error in errors)
        yield Finding("files", "fault", words, ELSEWHERE)
    if "seen" in first:
        yield _files(first["whole"], first["written"], first["seen"])
    if "damaged" in second:
        yield _rename(first["times"], second["times"], second["damaged"])
    if "lock" in second:
        yield _locks(first["lock"], second["lock"])


def _files(whole: bool, written: float, seen: float) -> Finding:
    if not whole:
        return Finding("files", "fault", "one reads other bytes than the other wrote", ELSEWHERE)
    found = (
        f"1 MiB written and flushed in {written:.3f} s, and seen by the other after {seen:.2f} s"
    )
    if max(written, seen) > SLOW:
        remedy = f"`submit` again where a task does not see what another wrote, or {ELSEWHERE}"
        return Finding("files", "warning", found, remedy)
    return Finding("files", "ok", found)


def _rename(replaced: int, read: int, damaged: int) -> Finding:
    found = f"a file was replaced {replaced:,} times, and read {read:,} times"
    if damaged:
        found += f", of which {damaged:,} found no whole file"
        return Finding("rename", "fault", found, ELSEWHERE)
    return Finding("rename", "ok", f"{found}, each time whole")


def _locks(first: str, second: str) -> Finding:
    if (first, second) == ("had", "kept out"):
        return Finding("locks", "ok", "one keeps the other out")
    words = second if first == "had" else first
    found = "both have the same lock at once" if words == "had" else f"there are none: {words}"
    remedy = "start only one `run` or `submit` at a time in a run directory"
    return Finding("locks", "warning", found, remedy)
