"""Do the MPI that mpi4py loads and the mpiexec that is found go together?"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

from skerch.files import cause
from skerch.jobs.commands.doctor import Finding
from skerch.jobs.launchers.mpi.launch import WAYS_OUT, find_mpiexec

PATIENCE = 60.0  # seconds for a program
LIBRARY = "from mpi4py import MPI; print(MPI.Get_library_version())"
# In one write, as what ranks print is mixed.
HELLO = "import os; from mpi4py import MPI; os.write(1, b'<%d>' % MPI.COMM_WORLD.size)"
FAMILIES = {  # by what a library or an mpiexec says of itself; those of one family start each other
    "Open MPI": r"Open ?MPI|OpenRTE|PRRTE",
    "MPICH": r"MPICH|HYDRA|MVAPICH|Intel\(R\) MPI|Cray MPI",
}


def findings() -> Iterator[Finding]:
    """What is found of MPI, of which `launcher.name: mpi` alone has need."""
    loads, library = _run([sys.executable, "-c", LIBRARY])
    if not loads:
        found = f"loads no MPI library ({library}); only launcher.name: mpi needs it"
        yield Finding("mpi4py", "note", found, WAYS_OUT)
        return
    first = library.splitlines()[0].partition(",")[0]
    name = " ".join(first.replace("Version:", "").split())  # MPICH Version:   5.0.2
    yield Finding("mpi4py", "ok", f"loads {name}")
    if mpiexec := find_mpiexec():
        yield _start(mpiexec, name)
    else:
        yield Finding("mpiexec", "note", "not found; only launcher.name: mpi needs it", WAYS_OUT)


def _start(mpiexec: str, library: str) -> Finding:
    """Whether an mpiexec starts ranks that find each other."""
    _, said = _run([mpiexec, "-n", "2", sys.executable, "-c", HELLO])
    ranks = re.findall(r"<(\d+)>", said)
    if ranks == ["2", "2"]:
        return Finding("mpiexec", "ok", f"{mpiexec} starts two ranks that find each other")
    kind, own = _family(_run([mpiexec, "--version"])[1]), _family(library)
    if kind and own and kind != own:
        found = f"{mpiexec} of {kind}, another MPI than that of mpi4py, {library}"
    elif ranks:
        found = f"{mpiexec} starts ranks that each find themselves alone"
    else:
        found = f"{mpiexec} starts no ranks: {said}"
    remedy = (
        "load one MPI module for both, or build mpi4py for this one: pip install "
        "--force-reinstall --no-binary=mpi4py mpi4py"
    )
    return Finding("mpiexec", "fault", found, remedy)


def _family(words: str) -> str:
    return next((name for name, form in FAMILIES.items() if re.search(form, words)), "")


def _run(command: list[str]) -> tuple[bool, str]:
    """Whether a program ends well, and what it prints, or else the last line of its errors."""
    try:
        done = subprocess.run(
            command, input="", capture_output=True, text=True, errors="replace", timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return False, f"it does not end within {PATIENCE:g} s"
    except OSError as error:
        return False, cause(error)
    if not done.returncode:
        return True, done.stdout
    last = done.stderr.strip().rpartition("\n")[2]
    return False, last[:300] or f"exit status {done.returncode}"
