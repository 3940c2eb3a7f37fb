"""One task of a run, as a job of a scheduler runs it: in its log, and by its id.

    python -m skerch.jobs.launchers.slurm.task RUN TASK [--name seigh] [--first 0] [--requeues 10]

With --first the job is an element of an array: its task is number FIRST + index of those whose ids
begin with TASK.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skerch.jobs.pipeline import Task


def main() -> None:
    """Run the task, unless what it leaves is there; exit status 1 if it fails.

    The signal before a time limit would end a process that has no handler yet, so it waits until
    there is one, and what takes its time to import is imported after this.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    from skerch.errors import SkerchError
    from skerch.files import print_always, refusals_named

    parser = argparse.ArgumentParser(prog="python -m skerch.jobs.launchers.slurm.task")
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("task", help="the task's id; with --first, what it begins with")
    parser.add_argument("--name", help="the method's folder; default: that of the latest run")
    parser.add_argument("--first", type=int, help="the number of the task with array index 0")
    parser.add_argument("--requeues", type=int, default=0, help="at the time limit, at most")
    options = parser.parse_args()
    print_always()
    try:
        with refusals_named():
            error = _run(options)
    except SkerchError as refusal:
        error = str(refusal)
    if error is not None:
        print(f"error: {error}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error is not None)  # all files are closed, and torch takes most of a second to leave


def _run(options: argparse.Namespace) -> str | None:
    from skerch.jobs import pipeline
    from skerch.jobs.config import ConfigError
    from skerch.jobs.launchers.local import run_task
    from skerch.jobs.launchers.slurm import inside
    from skerch.jobs.run_dir import RunDir
    from skerch.jobs.stages.program import omp_threads

    inside.requeue_at_time_limit(options.requeues, lambda words: print(words, flush=True))
    run = RunDir(options.run)
    config = run.grown(run.load(options.name))  # so that a job does what it was submitted for
    threads = config.launcher.threads or omp_threads() or inside.cpus()
    config = replace(config, launcher=replace(config.launcher, threads=threads))
    wanted = options.task
    if options.first is not None:
        wanted += f".{options.first + inside.array_index()}"
    tasks = {task.id: task for task in pipeline.tasks(config)}
    if wanted not in tasks:
        raise ConfigError(f"{options.run} has no task {wanted}.")
    task = tasks[wanted]
    if task.made:
        print(f"{task.id} is done already.", flush=True)
        return None
    _await(task, tasks)
    return run_task(config, task)


def _await(task: Task, tasks: Mapping[str, Task], patience: float = 60.0) -> None:
    """Wait for what another node has written: a network file system shows it late.

    What never comes is the stage's to name.
    """
    end = time.monotonic() + patience
    for need in (tasks[name] for name in task.needs):
        if need.records:
            need = replace(need, records=(task.arguments["step"], task.arguments["split"]))
        while not need.made and time.monotonic() < end:
            time.sleep(1.0)
            for path in need.outputs:
                with suppress(OSError):
                    os.listdir(path.parent)  # asks the server


if __name__ == "__main__":
    main()
