"""The digits with a loss that uses a known amount of memory and time, once a process.

In the training it holds memory and computes on one CPU; in a worker it sleeps. From then on the
training keeps writing down what it has used, to `used.json` in the run directory, where jobs run.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Thread

from skerch.jobs.problems.digits_mlp import digits_mlp

HELD, COMPUTED, SLEPT = 1200, 10.0, 12.0  # MiB, and seconds


def watch(wall):
    """Write down the wall time of the computing, and the most MiB that are seen in memory."""
    most = 0.0
    while True:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        size = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        if size > most:
            most = size
            Path("used.part").write_text(json.dumps({"wall": wall, "memory": most}))
            os.replace("used.part", "used.json")
        time.sleep(0.01)


@cache
def use(training):
    """Hold and compute, or sleep; what is held is returned, so that it stays."""
    held, begun, cpu = None, time.monotonic(), time.process_time()
    if training:
        held = bytearray(b"1") * (HELD << 20)
        while time.process_time() < cpu + COMPUTED:
            pass
        Thread(target=watch, args=(time.monotonic() - begun,), daemon=True).start()
    elif "SLURM_ARRAY_TASK_ID" in os.environ:
        time.sleep(SLEPT)
    return held


def digits():
    """The problem."""
    problem = digits_mlp()

    def loss_fn(model, batch):
        use(model.training)
        return problem.loss_fn(model, batch)

    return replace(problem, loss_fn=loss_fn)
