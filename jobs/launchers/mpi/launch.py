"""MPI: ranks that share the measurement blocks and the slabs of the streaming passes.

mpiexec starts the program of each rank, `python -m skerch.jobs.launchers.mpi`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from skerch.errors import SkerchError
from skerch.jobs.config import Config
from skerch.jobs.launchers import Report
from skerch.jobs.pipeline import Task
from skerch.jobs.run_dir import RunDir, method_name

if TYPE_CHECKING:
    pass

PATIENCE = 10.0  # seconds that mpiexec has to end its ranks
WAYS_OUT = "pip install mpich, load the cluster's MPI module, or set launcher.name=local."


class MpiError(SkerchError):
    """MPI that is not here, or ranks that ended before their work."""


def launch(config: Config, tasks: list[Task], report: Report) -> dict[str, str]:
    """Start `launcher.workers` ranks, which run what is missing; these are the tasks.

    Raises MpiError where there is no MPI, or a rank was killed, which ends all of them.
    """
    run, ranks = RunDir(config.run_dir), str(config.launcher.workers)
    mpiexec = find_mpiexec()
    if mpiexec is None:
        raise MpiError(
            f"launcher.name=mpi needs mpiexec, which is neither in {Path(sys.executable).parent} "
            f"nor on PATH: {WAYS_OUT}"
        )
    program = [sys.executable, "-m", "skerch.jobs.launchers.mpi", str(run.path)]
    command = [mpiexec, "-n", ranks, *program, "--name", method_name(config), "--ranks", ranks]
    log = run.task_log("mpi")
    log.parent.mkdir(parents=True, exist_ok=True)
    stdin, lifeline = os.pipe()
    os.write(lifeline, b"\n")
    try:
        with (
            log.open("ab", buffering=0) as said,
            subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=said) as process,
        ):
            try:
                failures = _listen(process, tasks, report, said.write)
            except BaseException:
                process.terminate()
                raise
            finally:
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
    finally:
        os.close(stdin)
        os.close(lifeline)
    if failures is None:
        raise MpiError(
            f"The ranks ended early: one was killed (by someone, or for lack of memory) or could "
            f"not start. {log} has what they said; what is finished is kept: run the same command "
            "again to go on."
        )
    return failures


def find_mpiexec() -> str | None:
    """The mpiexec beside the Python that runs, or else the first on PATH."""
    beside = str(Path(sys.executable).parent)
    return shutil.which("mpiexec", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))


def _listen(
    process: subprocess.Popen[bytes],
    tasks: list[Task],
    report: Report,
    keep: Callable[[bytes], object],
) -> dict[str, str] | None:
    """Report what the first rank says, until the ranks end; the failures, if it came so far."""
    known = {task.id: task for task in tasks}
    failures = None
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith(b'["'):  # mpiexec's own
            keep(line)
            continue
        word, *content = json.loads(line)
        if word == "refused":
            raise MpiError(content[0])
        if word == "failures":
            failures = content[0]
        elif content[0] in known:
            getattr(report, word)(known[content[0]], *content[1:])
    return failures
