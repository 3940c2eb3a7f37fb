"""What the machine can do, and which it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.harness import clock, in_turns
from benchmarks.peers.products import seconds

Work = Callable[[], float]  # something done, in seconds


def machine() -> str:
    """The processor, threads and versions that the figures are of, in one line."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, "unknown processor")
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def least_seconds(work: Callable[[], object], repeat: int = 5, budget: float = 10.0) -> float:
    """The least wall-clock time of some runs after one for warmth; none begins after the budget."""
    return min(in_turns({"": lambda: clock(work)}, repeat, budget)[""])


def gemm_operation(dtype: torch.dtype, size: int = 2048) -> Work:
    """Measures a floating-point operation of a square matrix product."""
    A = torch.randn(size, size, dtype=dtype)
    return lambda: seconds(lambda: A @ A) / (2 * size**3)


def gemm_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product."""
    return 1 / min(in_turns({"": gemm_operation(dtype)}, 5)[""])


def write_rate(path: Path, size: int = 2**30, now: Work = time.perf_counter) -> float:
    """Bytes a second that are written to a new file, until they are on the disk."""
    piece = os.urandom(2**24)
    start = now()
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // len(piece)):
            file.write(piece)
        os.fsync(file.fileno())
    return size / (now() - start)


def read_rate(paths: Sequence[Path], now: Work = time.perf_counter) -> float:
    """Bytes a second that are read from files once the page cache has dropped them."""
    for path in paths:
        drop_cache(path)
    start = now()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(2**24):
                pass
    return sum(path.stat().st_size for path in paths) / (now() - start)


def peak_bytes(process: int | str = "self") -> int:
    """The most memory that a process has had so far."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def drop_cache(path: Path) -> None:
    """Have the system forget what it holds of a file in memory, once it is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
