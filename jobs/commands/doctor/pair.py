"""One of two processes that try a file system, here or on two nodes, and what Python is there.

    python -m skerch.jobs.commands.doctor.pair FOLDER SECONDS [NUMBER]

They speak by files in FOLDER, which they make, and wait SECONDS for each other. NUMBER is 0 or 1,
by default that of a task of srun. Each prints a JSON object with what it finds, and without NUMBER
another with Python and Slurm on its node, too. Exit status 2: FOLDER would be in none.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError, UsageError
from skerch.files import cause, write_atomically
from skerch.jobs.commands.doctor import Finding

SIZE = 2**20  # bytes of the file that one writes and the other sends back
VERSION = 2**16  # bytes of the file that is replaced
REPLACING = 1.0  # seconds for which it is replaced, over and over
SLOW = 5.0  # seconds until a file is seen, or 1 MiB is on disk, that deserve a word
NAP = 0.02  # seconds between two looks for a file
ELSEWHERE = "give run_dir on another file system: the cluster's documentation names them"
OWN = ("partition", "account", "qos")  # of the job, with which it is to submit another


class Pair:
    """One of two processes that try a folder together; of each trial, one tells."""

    def __init__(self, folder: Path, number: int, patience: float):
        self.folder, self.number, self.patience = folder, number, patience
        self.first = number == 0

    def findings(self) -> Iterator[Finding]:
        """What this one finds, up to what prevents the rest."""
        try:
            self.folder.mkdir(exist_ok=True)
            self._meet("begin")
            yield from self._files()
            yield from self._rename()
            yield from self._locks()
        except SkerchError as error:
            yield Finding("files", "fault", str(error), ELSEWHERE)
        except OSError as error:
            words = f"{error.filename or self.folder}: {cause(error)}."
            yield Finding("files", "fault", words, ELSEWHERE)

    def _files(self) -> Iterator[Finding]:
        """How long the first one's file takes to be written, and to be seen by the other."""
        if not self.first:
            self._say("pong", self._hear("ping"))
            return
        time.sleep(0.2)  # the other has looked meanwhile: that it was not there is remembered
        content = os.urandom(SIZE)
        begin = time.monotonic()
        self._say("ping", content)
        written = time.monotonic() - begin
        whole = self._hear("pong") == content
        seen = (time.monotonic() - begin - written) / 2
        found = f"1 MiB is on disk in {written:.3f} s, and seen by the other after {seen:.2f} s"
        if not whole:
            found = "one reads other bytes than the other wrote"
            yield Finding("files", "fault", found, ELSEWHERE)
        elif max(written, seen) > SLOW:
            remedy = f"`submit` again where a task does not see what another wrote, or {ELSEWHERE}"
            yield Finding("files", "warning", found, remedy)
        else:
            yield Finding("files", "ok", found)

    def _rename(self) -> Iterator[Finding]:
        """Whether a file that the first one replaces over and over is always there and whole."""
        path, reads, damaged = self.folder / "replaced", 0, 0
        if self.first:
            _put(path, bytes(VERSION))
        self._meet("replace")
        end = time.monotonic() + REPLACING
        if self.first:
            while time.monotonic() < end:
                _put(path, os.urandom(1) * VERSION)
            self._say("replaced")
            return
        while not self._others("replaced").exists() and time.monotonic() < end + self.patience:
            reads += 1
            damaged += not _of_one_piece(path)
        found = f"a file that is replaced all the time was read {reads:,} times"
        if damaged:
            found += f", of which {damaged:,} found no whole file"
            yield Finding("rename", "fault", found, ELSEWHERE)
        else:
            yield Finding("rename", "ok", f"{found}, each time whole")

    def _locks(self) -> Iterator[Finding]:
        """Whether a file that the first one locks is locked for the other."""
        if not self.first:
            self._hear("locked")
        with (self.folder / "locked").open("ab") as file:
            fault = "one has what the other has locked"
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fault = ""
            except OSError as error:
                fault = f"there are none: {cause(error)}"
            self._say("locked")
            if self.first:  # which has the lock until the other has tried
                self._hear("locked")
            elif fault:
                remedy = "start only one `run` or `submit` at a time in a run directory"
                yield Finding("locks", "warning", fault, remedy)
            else:
                yield Finding("locks", "ok", "one keeps the other out")

    def _say(self, word: str, content: bytes = b"") -> None:
        _put(self.folder / f"{word}.{self.number}", content)

    def _hear(self, word: str) -> bytes:
        """What the other says; raises SkerchError where nothing is seen in time."""
        path, end = self._others(word), time.monotonic() + self.patience
        while not path.exists():
            if time.monotonic() > end:
                raise SkerchError(f"What the other wrote is not seen within {self.patience:g} s.")
            time.sleep(NAP)
        return path.read_bytes()

    def _others(self, word: str) -> Path:
        return self.folder / f"{word}.{1 - self.number}"

    def _meet(self, word: str) -> None:
        self._say(word)
        self._hear(word)


def _put(path: Path, content: bytes) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _of_one_piece(path: Path) -> bool:
    with suppress(OSError):  # it is not there
        content = path.read_bytes()
        return len(content) == VERSION and len(set(content)) == 1
    return False


def versions() -> dict[str, str]:
    """The versions of what must be the same here and on nodes."""
    return {"python": platform.python_version()} | {n: version(n) for n in ("skerch", "torch")}


def _python() -> dict[str, Any]:
    """What Python, skerch and PyTorch are here, and the GPUs that PyTorch sees."""
    begin = time.monotonic()
    import torch

    took = time.monotonic() - begin
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return versions() | {"import": took, "gpus": gpus}


def main() -> None:
    """The program."""
    folder, seconds, *own = sys.argv[1:]
    number = int(own[0] if own else os.environ.get("SLURM_PROCID", 0))
    pair = Pair(Path(folder), number, float(seconds))
    if not os.path.isdir(pair.folder.parent):
        sys.exit(UsageError.exit_status)
    node = os.environ.get("SLURMD_NODENAME") or platform.node()
    report: dict[str, Any] = {"number": number, "node": node}
    report["findings"] = [asdict(finding) for finding in pair.findings()]
    print(json.dumps(report), flush=True)
    if own:
        return
    from skerch.jobs.launchers.slurm import facts

    if pair.first:
        given = {key: os.environ.get(f"SLURM_JOB_{key.upper()}") for key in OWN}
        options = [f"--{key}={value}" for key, value in given.items() if value]
        report["refusal"] = facts.refusal("#!/bin/sh\n", ["--mem=100M", *options])
    try:
        report |= _python()
    except Exception as error:  # of a library that does not fit this node
        report["no torch"] = f"{type(error).__name__}: {error}"
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
