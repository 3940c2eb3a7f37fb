"""What glibc does with the memory of tensors that are gone."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
OF_THE_USER = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


@cache
def keep_freed_memory() -> None:
    """Have this process keep up to 1 GiB of freed memory, on Linux with glibc.

    Otherwise what the tensors of a block free goes back to the system, and comes again page by page
    for the next block, which takes up to half of the time of a product. What the environment says
    (`OF_THE_USER`) stays.
    """
    if not any(name in os.environ for name in OF_THE_USER):
        with suppress(AttributeError, OSError, TypeError):  # other C libraries, other systems
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that it takes
            mallopt(M_TRIM_THRESHOLD, 2**30)
