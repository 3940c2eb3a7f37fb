"""Do the MPI that mpi4py loads and the mpiexec that is found go together?"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

from skerch.jobs.commands.doctor.finding import Finding
from skerch.jobs.launchers.mpi.launch import WAYS_OUT, find_mpiexec

PATIENCE = 60.0  # seconds for a program
LIBRARY = """
import json, sys
try:
    import mpi4py
except ImportError:
    sys.exit()
from mpi4py import MPI
print(json.dumps([mpi4py.__version__, MPI.Get_library_version().splitlines()[0]]))
"""
# In one write, as what ranks print is mixed.
HELLO = "import os; from mpi4py import MPI; os.write(1, b'<%d>' % MPI.COMM_WORLD.size)"
FAMILIES = {  # by what a library or an mpiexec says of itself; those of one family start each other
    "Open MPI": r"Open ?MPI|OpenRTE|PRRTE",
    "MPICH": r"MPICH|HYDRA|MVAPICH|Intel\(R\) MPI|Cray MPI",
}


def findings() -> Iterator[Finding]:
    """What is found of MPI, of which `launcher.name: mpi` alone has need."""
    status, said, words = _said([sys.executable, "-c", LIBRARY])
    mpiexec = find_mpiexec()
    if status == 0 and not said:
        yield Finding("mpi4py", "note", "not there; only launcher.name: mpi needs it")
        return
    if status != 0:
        remedy = f"only launcher.name: mpi needs it: {WAYS_OUT}"
        yield Finding("mpi4py", "note", f"finds no MPI library ({words})", remedy)
        return
    version, library = json.loads(said.splitlines()[-1])
    yield Finding("mpi4py", "ok", f"{version}, which loads {_short(library)}")
    if mpiexec is None:
        yield Finding("mpiexec", "note", "not found; only launcher.name: mpi needs it", WAYS_OUT)
        return
    yield from _starts(mpiexec, _family(library), _short(library))
    first = shutil.which("mpiexec")
    if first and first != mpiexec and (other := _kind(first)) not in ("", _family(library)):
        yield Finding(
            "mpiexec",
            "warning",
            f"the first on PATH, {first}, is of {other}; skerch starts {mpiexec}",
            "do not start ranks with the one on PATH by hand",
        )


def _starts(mpiexec: str, family: str, library: str) -> Iterator[Finding]:
    """Whether an mpiexec starts ranks that find each other."""
    kind = _kind(mpiexec)
    status, said, words = _said([mpiexec, "-n", "2", sys.executable, "-c", HELLO])
    joined = re.findall(r"<(\d+)>", said)
    name = f"{mpiexec}{kind and f' of {kind}'}"
    if joined == ["2", "2"]:
        yield Finding("mpiexec", "ok", f"{name} starts two ranks that find each other")
        return
    remedy = (
        "load one MPI module for both, or build mpi4py for this one: pip install "
        "--force-reinstall --no-binary=mpi4py mpi4py"
    )
    if kind and family and kind != family:
        found = f"{name}, another MPI than that of mpi4py, {library}"
    elif joined:
        found = f"{name} starts ranks that each find themselves alone"
    else:
        found = f"{name} starts no ranks: {words or f'exit status {status}'}"
    yield Finding("mpiexec", "fault", found, remedy)


def _kind(mpiexec: str) -> str:
    """The family of an mpiexec; "" where it does not say."""
    _, said, words = _said([mpiexec, "--version"])
    return _family(said + words)


def _family(words: str) -> str:
    return next((name for name, form in FAMILIES.items() if re.search(form, words)), "")


def _short(library: str) -> str:
    """A library's name and version: "MPICH Version: 5.0.2" is MPICH 5.0.2."""
    return " ".join(library.partition(",")[0].replace("Version:", "").split())


def _said(command: list[str]) -> tuple[int, str, str]:
    """The exit status of a program, what it printed, and the last line of its errors."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"it does not end within {PATIENCE:g} s"
    except OSError as error:
        return 1, "", error.strerror or str(error)
    return done.returncode, done.stdout, " ".join(done.stderr.split("\n")[-2:]).strip()[:300]
