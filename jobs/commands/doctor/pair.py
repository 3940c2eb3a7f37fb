"""One of two processes that try a file system, here or on two nodes, and what Python is there.

    python -m skerch.jobs.commands.doctor.pair FOLDER SECONDS [NUMBER]

They speak by files in FOLDER, which they make, and wait SECONDS for each other. NUMBER is 0 or 1,
by default that of a task of srun. Each prints a JSON object, and without NUMBER another that also
tells what Python and Slurm are on its node.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError
from skerch.files import cause, write_atomically

SIZE = 2**20  # bytes of the file that one writes and the other reads
VERSION = 2**16  # bytes of the file that is replaced
REPLACING = 1.0  # seconds for which it is replaced, over and over
LINKS = 20  # names for which both race
OWN = {  # what a job has, as options of sbatch
    **{"partition": "SLURM_JOB_PARTITION", "account": "SLURM_JOB_ACCOUNT"},
    **{"qos": "SLURM_JOB_QOS"},
}
NAP = 0.02  # seconds between two looks for a file


class SilentError(SkerchError):
    """The other process does not answer."""


class Pair:
    """Two processes that try a folder together; `report` has what this one sees."""

    def __init__(self, folder: Path, number: int, patience: float):
        self.folder, self.number, self.patience = folder, number, patience
        self.first = number == 0
        self.report: dict[str, Any] = {
            "node": os.environ.get("SLURMD_NODENAME") or platform.node(),
            "error": "",
        }

    def try_all(self) -> None:
        """Try everything; what prevents that is the report's `error`."""
        try:
            self.folder.mkdir(exist_ok=True)
            self.report |= {"type": file_system(self.folder), "free": free_bytes(self.folder)}
            begin = time.monotonic()
            self._meet("begin")
            self.report["met"] = time.monotonic() - begin
            for step in (self._see, self._rename, self._lock, self._link):
                step()
        except SkerchError as error:
            self.report["error"] = str(error)
        except OSError as error:
            self.report["error"] = f"{error.filename or self.folder}: {cause(error)}."
            self.report["no folder"] = not os.path.isdir(self.folder.parent)

    def _see(self) -> None:
        """How long the first one's file takes to be seen by the other, and to be written."""
        if self.first:
            time.sleep(0.2)  # the other has looked meanwhile: that it was not there is remembered
            content = os.urandom(SIZE)
            begin = time.monotonic()
            self._say("ping", content)
            written = time.monotonic()
            heard = self._hear("pong")
            self.report["seen"] = (time.monotonic() - written) / 2
            self.report["written"] = written - begin
            self.report["whole"] = heard == _digest(content)
        else:
            self._say("pong", _digest(self._hear("ping")))

    def _rename(self) -> None:
        """Whether a file that is replaced over and over is always there and of one piece."""
        path = self.folder / "replaced"
        if self.first:
            write_atomically(path, partial(_write, bytes(VERSION)))
        self._meet("replace")
        end, number = time.monotonic() + REPLACING, 0
        if self.first:
            while time.monotonic() < end:
                number += 1
                write_atomically(path, partial(_write, bytes([number % 256]) * VERSION))
            self.report["replaced"] = number
            self._say("replaced")
            return
        damaged, before = 0, path.open("rb")
        with before:
            while not self._said("replaced") and time.monotonic() < end + self.patience:
                number += 1
                damaged += not _of_one_piece(path.read_bytes)
            old = _of_one_piece(before.read)
        self.report |= {"reads": number, "damaged": damaged, "old": old}

    def _lock(self) -> None:
        """Whether a file that the first one locks is locked for the other."""
        path = self.folder / "locked"
        self._meet("lock")
        if not self.first:
            self._hear("locked")
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.report["lock"] = "had"
            except BlockingIOError:
                self.report["lock"] = "kept out"
            except OSError as error:
                self.report["lock"] = cause(error)
            self._say("locked")
            if self.first:
                self._hear("locked")

    def _link(self) -> None:
        """Which names this one has made by hard links, where both try to."""
        mine = self.folder / f"linked.{self.number}"
        mine.touch()
        self._meet("link")
        made = []
        try:
            for number in range(LINKS):
                with suppress(FileExistsError):
                    os.link(mine, self.folder / f"once.{number}")
                    made.append(number)
            self.report["links"] = made
        except OSError as error:
            self.report["links"] = cause(error)

    def _path(self, word: str, number: int) -> Path:
        return self.folder / f"{word}.{number}"

    def _say(self, word: str, content: bytes = b"") -> None:
        write_atomically(self._path(word, self.number), partial(_write, content))

    def _said(self, word: str) -> bool:
        return self._path(word, 1 - self.number).exists()

    def _hear(self, word: str) -> bytes:
        """What the other says; raises SilentError where nothing is seen in time."""
        end = time.monotonic() + self.patience
        while not self._said(word):
            if time.monotonic() > end:
                raise SilentError(
                    f"Nothing that the other process wrote is seen within {self.patience:g} s."
                )
            time.sleep(NAP)
        return self._path(word, 1 - self.number).read_bytes()

    def _meet(self, word: str) -> None:
        self._say(word)
        self._hear(word)


def file_system(folder: Path) -> str:
    """The type of a folder's file system, as the kernel names it; "" where that is not known."""
    found, longest, folder = "", 0, folder.resolve()
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            _, mounted, kind, *_ = line.split()
            mounted = mounted.encode().decode("unicode_escape")  # a space is \040
            if folder.is_relative_to(mounted) and len(mounted) >= longest:
                longest, found = len(mounted), kind
    return found


def free_bytes(folder: Path) -> int:
    """The bytes that this user can still write there, as far as no quota is in the way."""
    said = os.statvfs(folder)
    return said.f_bavail * said.f_frsize


def versions() -> dict[str, str]:
    """The versions of what must be the same here and on nodes."""
    return {"python": platform.python_version()} | {n: version(n) for n in ("skerch", "torch")}


def python_here() -> dict[str, Any]:
    """What Python, skerch and PyTorch are here, and what PyTorch sees."""
    begin = time.monotonic()
    import torch

    took = time.monotonic() - begin
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    threads = torch.get_num_threads()
    return versions() | {
        "import": took,
        "cpus": os.cpu_count(),
        "threads": threads,
        "gpus": gpus,
    }


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _of_one_piece(read: Callable[[], bytes]) -> bool:
    try:
        content = read()
    except OSError:  # it is not there, or no more
        return False
    return len(content) == VERSION and len(set(content)) == 1


def main() -> None:
    """The program."""
    folder, seconds, *number = sys.argv[1:]
    pair = Pair(
        Path(folder), int((number or [os.environ.get("SLURM_PROCID", "0")])[0]), float(seconds)
    )
    pair.try_all()
    print(json.dumps(pair.report), flush=True)
    if number:
        return
    from skerch.jobs.launchers.slurm import facts

    if pair.first:
        options = [f"--{o}={os.environ[v]}" for o, v in OWN.items() if v in os.environ]
        pair.report["refusal"] = facts.refusal("#!/bin/sh\n", ["--mem=100M", *options])
    try:
        pair.report |= python_here()
    except Exception as error:  # of a library that does not fit this node
        pair.report["no torch"] = f"{type(error).__name__}: {error}"
    print(json.dumps(pair.report), flush=True)


if __name__ == "__main__":
    main()
