"""The digits with a loss that can be halted, or made to fail, in workers that are at it.

Jobs run in the run directory. While a file `halt.<index>` with a number is there, the worker with
that array index stops at that block, and `halted.<index>` has its pid; one that is of no array has
its task instead, as in `halt.measure-1.0`, or as a step of an allocation its task's number. A block
takes two calls of the loss, one for each batch, as the graph of a single one would serve all
blocks. Before the first one a worker calls it as often for one product and for the loss, to see
that both are the array's.

While a file `raise` is there, the loss of tasks that have its text in their command fails.

While a file `eat` has a task's id, each call of its loss takes 2 GB for a minute.

While a file `slow` is there, a step of the training takes as many seconds as it says.
"""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

from skerch.jobs.problems.digits_mlp import digits_mlp

TASK = "".join(sys.argv[2:3]).rpartition("-test.")[2]  # of a job alone: merge, measure-1.0
calls = count(1)


def first_of(halt):
    """The block to stop at: none while there is no file, or one that is not written yet."""
    with suppress(FileNotFoundError, ValueError):
        return int(halt.read_text())
    return math.inf


def digits():
    """The problem."""
    problem = digits_mlp()

    def loss_fn(model, batch):
        alone = TASK if Path(f"halt.{TASK}").exists() else TASK.rpartition(".")[2]
        index, number = os.environ.get("SLURM_ARRAY_TASK_ID", alone), (next(calls) + 1) // 2 - 2
        halt = Path(f"halt.{index}")
        if number >= first_of(halt):
            Path(f"halted.{index}").write_text(str(os.getpid()))
            while halt.exists():
                time.sleep(0.05)
        if Path("eat").exists() and Path("eat").read_text() in sys.argv:
            eaten = b"x" * 2_000_000_000
            time.sleep(60)
            del eaten
        if Path("raise").exists() and Path("raise").read_text() in " ".join(sys.argv):
            raise ArithmeticError("this loss has no value")
        if model.training and Path("slow").exists():
            time.sleep(float(Path("slow").read_text()))
        return problem.loss_fn(model, batch)

    return replace(problem, loss_fn=loss_fn)
