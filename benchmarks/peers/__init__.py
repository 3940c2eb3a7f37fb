"""Peers: programs in environments of their own, asked for one measurement at a time.

An environment is made from PyPI on first use, below `.peers/` in the project's folder. A peer's
program is a file of this folder of the same name; it needs torch and the peer's package alone. It
answers requests on its standard input: first to load a network and its data from a file, then to
measure. So ours and theirs are measured in turn within one run; without a request it only waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PROGRAMS = Path(__file__).parent
ENVIRONMENTS = PROGRAMS.parents[1] / ".peers"
REQUIREMENTS = {
    "curvlinops_products": ["curvlinops-for-pytorch==3.0.1"],
    "kronfluence_factors": ["torch==2.13.0", "kronfluence==1.0.1"],
    "skerch_1_2": ["torch==2.13.0", "skerch==1.2.0"],  # with torch 2.15 it does not run
}


class PeerError(Exception):
    """A peer's environment that cannot be made, or a request that it has failed."""


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, which is made where it is missing or incomplete."""
    folder, wanted = ENVIRONMENTS / name, "\n".join(REQUIREMENTS[name])
    made, python = folder / "requirements.txt", folder / "bin" / "python"
    if not made.exists() or made.read_text() != wanted:
        print(f"{folder}: installing {wanted!r}", file=sys.stderr, flush=True)
        pip = [python, "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]]
        for command in ([sys.executable, "-m", "venv", "--clear", folder], pip):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise PeerError(f"{folder} cannot be made: {done.stderr.strip()[-500:]}")
        made.write_text(wanted)
    return python


class Peer:
    """A peer's program, as a context manager; it runs with as many threads as this process."""

    def __init__(self, name: str, python: Path | None = None):
        self.name = name
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [python or python_of(name), "-E", "-s", PROGRAMS / f"{name}.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder.name,
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        )

    def load(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        """Hand it what the next requests are about: a network of torch's own modules, its batch."""
        path = Path(self._folder.name, "problem.pt")
        torch.save((network, batch), path)
        self.ask("load", path=str(path))

    def ask(self, what: str, **arguments: Any) -> Any:
        """What the program's function `what` returns; raises PeerError where it fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # where it has ended: there is no answer then
            print(json.dumps([what, arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise PeerError(f"{self.name} ended with status {self._process.wait()} at {what}.")
        return json.loads(answer)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()
