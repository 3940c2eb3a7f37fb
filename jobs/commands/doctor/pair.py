"""One of two processes that try a file system, here or on two nodes, and what Python is there.

    python -m skerch.jobs.commands.doctor.pair FOLDER SECONDS [NUMBER]

They speak by files in FOLDER, which they make, and wait SECONDS for each other. NUMBER is 0 or 1,
by default that of a task of srun. Each prints a JSON object, and without NUMBER another that also
tells what Python and Slurm are on its node.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError
from skerch.files import cause, write_atomically

SIZE = 2**20  # bytes of the file that one writes and the other sends back
VERSION = 2**16  # bytes of the file that is replaced
REPLACING = 1.0  # seconds for which it is replaced, over and over
NAP = 0.02  # seconds between two looks for a file
OWN = ("partition", "account", "qos")  # of the job, with which it is to submit another


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
            free = shutil.disk_usage(self.folder).free
            self.report |= {"type": file_system(self.folder), "free": free}
            self._meet("begin")
            self._see()
            self._rename()
            self._lock()
        except SkerchError as error:
            self.report["error"] = str(error)
        except OSError as error:
            self.report["error"] = f"{error.filename or self.folder}: {cause(error)}."
            self.report["no folder"] = not os.path.isdir(self.folder.parent)

    def _see(self) -> None:
        """How long the first one's file takes to be written, and to be seen by the other."""
        if not self.first:
            self._say("pong", self._hear("ping"))
            return
        time.sleep(0.2)  # the other has looked meanwhile: that it was not there is remembered
        content = os.urandom(SIZE)
        begin = time.monotonic()
        self._say("ping", content)
        written = time.monotonic()
        self.report["whole"] = self._hear("pong") == content
        self.report["seen"] = (time.monotonic() - written) / 2
        self.report["written"] = written - begin

    def _rename(self) -> None:
        """Whether a file that is replaced over and over is always there and of one piece."""
        path, times, damaged = self.folder / "replaced", 0, 0
        if self.first:
            _put(path, bytes(VERSION))
        self._meet("replace")
        end = time.monotonic() + REPLACING
        if self.first:
            while time.monotonic() < end:
                times += 1
                _put(path, bytes([times % 256]) * VERSION)
            self._say("replaced")
        else:
            while not self._said("replaced") and time.monotonic() < end + self.patience:
                times += 1
                damaged += not _of_one_piece(path)
        self.report |= {"times": times, "damaged": damaged}

    def _lock(self) -> None:
        """Whether a file that the first one locks is locked for the other."""
        if not self.first:
            self._hear("locked")
        with (self.folder / "locked").open("ab") as file:
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

    def _path(self, word: str, number: int) -> Path:
        return self.folder / f"{word}.{number}"

    def _say(self, word: str, content: bytes = b"") -> None:
        _put(self._path(word, self.number), content)

    def _said(self, word: str) -> bool:
        return self._path(word, 1 - self.number).exists()

    def _hear(self, word: str) -> bytes:
        """What the other says; raises SkerchError where nothing is seen in time."""
        end = time.monotonic() + self.patience
        while not self._said(word):
            if time.monotonic() > end:
                raise SkerchError(
                    f"Nothing that the other process wrote is seen within {self.patience:g} s."
                )
            time.sleep(NAP)
        return self._path(word, 1 - self.number).read_bytes()

    def _meet(self, word: str) -> None:
        self._say(word)
        self._hear(word)


def file_system(folder: Path) -> str:
    """The type of a folder's file system, as the kernel names it; "" where that is not known."""
    folder = folder.resolve()
    with suppress(OSError):
        text = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
        rows = [line.split() for line in text.splitlines()]
        types = {mounted.replace("\\040", " "): kind for _, mounted, kind, *_ in rows}
        return next((types[str(p)] for p in (folder, *folder.parents) if str(p) in types), "")
    return ""


def versions() -> dict[str, str]:
    """The versions of what must be the same here and on nodes."""
    return {"python": platform.python_version()} | {n: version(n) for n in ("skerch", "torch")}


def python_here() -> dict[str, Any]:
    """What Python, skerch and PyTorch are here, and the GPUs that PyTorch sees."""
    begin = time.monotonic()
    import torch

    took = time.monotonic() - begin
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return versions() | {"import": took, "gpus": gpus}


def _put(path: Path, content: bytes) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _of_one_piece(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:  # it is not there
        return False
    return len(content) == VERSION and len(set(content)) == 1


def main() -> None:
    """The program."""
    folder, seconds, *own = sys.argv[1:]
    number = int(own[0] if own else os.environ.get("SLURM_PROCID", 0))
    pair = Pair(Path(folder), number, float(seconds))
    pair.try_all()
    print(json.dumps(pair.report), flush=True)
    if own:
        return
    from skerch.jobs.launchers.slurm import facts

    if pair.first:
        given = {key: os.environ.get(f"SLURM_JOB_{key.upper()}") for key in OWN}
        options = [f"--{key}={value}" for key, value in given.items() if value]
        pair.report["refusal"] = facts.refusal("#!/bin/sh\n", ["--mem=100M", *options])
    try:
        pair.report |= python_here()
    except Exception as error:  # of a library that does not fit this node
        pair.report["no torch"] = f"{type(error).__name__}: {error}"
    print(json.dumps(pair.report), flush=True)


if __name__ == "__main__":
    main()
