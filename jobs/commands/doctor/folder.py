"""Is a folder's file system fit for run directories? Two processes try it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from skerch.errors import UsageError
from skerch.jobs.commands.doctor import Finding
from skerch.jobs.commands.doctor.pair import ELSEWHERE

PATIENCE = 20.0  # seconds for which processes here wait for each other
BOUND = 60.0  # seconds after which they are ended


def new_folder(parent: Path) -> Path:
    """A name for a folder of this command's."""
    return parent / f".skerch-doctor-{uuid.uuid4().hex[:8]}"


def program(folder: Path, patience: float) -> list[str]:
    """The command of a process that tries a folder with another."""
    module = "skerch.jobs.commands.doctor.pair"
    return [sys.executable, "-m", module, str(folder), str(patience)]


def try_here(parent: Path) -> list[Finding]:
    """What two processes of this machine find in a folder; raises UsageError where there is none.

    They look for it, too: this process would wait for ever for a dead server.
    """
    folder = new_folder(parent)
    both = [
        subprocess.Popen(
            [*program(folder, PATIENCE), number],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        for number in "01"
    ]
    rows = findings([_report(process) for process in both])
    if any(process.returncode == UsageError.exit_status for process in both):
        raise UsageError(f"There is no folder {parent} to look into; make it, or name another.")
    if all(process.returncode == 0 for process in both):  # else it may take for ever
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def _report(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        said, _ = process.communicate(timeout=BOUND)
    except subprocess.TimeoutExpired:
        process.kill()  # which does not help where the system waits for a dead server
        said = f"It does not answer within {BOUND:g} s."
    words = said.strip() or f"A process ended with status {process.returncode}."
    lost = Finding("files", "fault", words.splitlines()[-1], ELSEWHERE)
    return (reports(said) or [{"findings": [asdict(lost)]}])[0]


def reports(said: str) -> list[dict[str, Any]]:
    """The last report of each process, by number, in what they have printed."""
    found = {}
    for line in said.splitlines():
        with suppress(ValueError, TypeError, KeyError):  # others print, too
            report = json.loads(line)
            found[report["number"]] = report
    return [found[number] for number in sorted(found)]


def findings(reports: Iterable[dict[str, Any]]) -> list[Finding]:
    """What processes have found, each once."""
    rows = [Finding(**row) for report in reports for row in report["findings"]]
    return list(dict.fromkeys(rows))
