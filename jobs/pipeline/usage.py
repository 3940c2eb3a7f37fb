"""What a process has of its machine, and what it has used of it."""

from __future__ import annotations

import os
import re
import resource
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

PROCESS = Path("/proc/self")


def place() -> dict[str, Any]:
    """The node, the job of Slurm (12, or 12_3), and the CPUs and GPUs that this process may use."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return {
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "job": _job(),
        "cpus": int(cpus) if cpus.isdecimal() else len(os.sched_getaffinity(0)),
        "gpus": _gpus(),
    }


def _job() -> str | None:
    array, index = (os.environ.get(f"SLURM_ARRAY_{key}_ID") for key in ("JOB", "TASK"))
    return f"{array}_{index}" if array else os.environ.get("SLURM_JOB_ID")


def _gpus() -> int:
    """The GPUs of this process, by its environment; 0 where that does not tell."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return sum(name not in ("", "-1", "NoDevFiles") for name in visible.split(","))
    granted = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return int(granted) if granted.isdecimal() else 0


def cpu_seconds() -> float:
    """The processor time of this process, and of those of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def reset_peak() -> None:
    """Let `peak` begin anew, where the system can: else it is of the whole process."""
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5", encoding="utf-8")


def peak() -> int:
    """The most memory, in MiB, that this process has had since `reset_peak`.

    The system's `ru_maxrss` would also count what the parent had when it started this process.
    """
    with suppress(OSError):
        status = (PROCESS / "status").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
            return int(found[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
