"""One task of a run, as a job of a scheduler runs it: in its log, and by its id.

    python -m skerch.jobs.launchers.slurm.task RUN TASK [--name seigh] [--first 0] [--requeues 10]
                                             [--grace 90] [--shared] [--follow]

With --first the job is an element of an array: its task is number FIRST + index of those whose ids
begin with TASK. With --shared all elements of an array do the same task: who comes later waits for
the one that is at it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skerch.jobs.pipeline import Task
    from skerch.jobs.run_dir import RunDir
    from skerch.jobs.stages.context import Context


def main() -> None:
    """Run the task, unless what it leaves is there; exit status 1 if it fails.

    The signal before a time limit would end a process that has no handler yet, so it waits until
    there is one, and what takes its time to import is imported after this.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    from skerch.errors import SkerchError
    from skerch.files import print_always, refusals_named
    from skerch.jobs.launchers import lifeline

    parser = argparse.ArgumentParser(prog="python -m skerch.jobs.launchers.slurm.task")
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("task", help="the task's id; with --first, what it begins with")
    parser.add_argument("--name", help="the method's folder; default: that of the latest run")
    parser.add_argument("--first", type=int, help="the number of the task with array index 0")
    parser.add_argument("--requeues", type=int, default=0, help="at the time limit, at most")
    parser.add_argument("--grace", type=int, default=0, help="seconds before that, of the signal")
    parser.add_argument("--follow", action="store_true", help="end with what holds stdin")
    parser.add_argument("--shared", action="store_true", help="wait for another job that is at it")
    options = parser.parse_args()
    if options.follow:
        lifeline.follow()
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
    from skerch.jobs.config.stages import STAGES
    from skerch.jobs.launchers.local import run_task
    from skerch.jobs.launchers.slurm import copies, inside
    from skerch.jobs.run_dir import RunDir
    from skerch.jobs.stages.program import execute, omp_threads

    run = RunDir(options.run)
    config = run.grown(run.load(options.name))  # so that a job does what it was submitted for
    threads = config.launcher.threads or omp_threads() or inside.cpus()
    config = replace(config, launcher=replace(config.launcher, threads=threads))
    wanted = options.task
    if options.first is not None:
        wanted += f".{options.first + inside.array_index()}"

    def tasks() -> dict[str, Task]:
        return {task.id: task for task in pipeline.tasks(config)}

    there = tasks()
    task = there.get(wanted)
    if task is None:
        raise ConfigError(f"{options.run} has no task {wanted}.")

    def say(words: str) -> None:
        print(words, flush=True)

    def work(stage: str, context: Context) -> None:
        if stage == "train":  # a question to Slurm, which is not for each of many workers
            context = replace(context, time_limit=max(1.0, inside.time_limit() - options.grace))
        execute(stage, context)

    def made() -> bool:  # or, of a means, read by all who need it
        return task.made or (alone and task not in pipeline.missing(list(there.values())))

    alone = options.first is None
    resumes = STAGES[task.stage].resumes is not None
    stuck = partial(_stuck, run, task, _kept(run, task))
    until = (lambda: task.made) if options.shared else None
    with copies.alone(run.task_lock(task.id), say, until) as first:
        if not first:
            return None
        if made():
            reason = "done already" if task.outputs else "not needed: the target is reached"
            say(f"{task.id} is {reason}.")
            return None
        inside.requeue_at_time_limit(options.requeues, resumes, say, stuck)
        _await(task, tasks)
        error = run_task(config, task, work=work)
        if error is None and not tasks()[wanted].made:
            return f"{task.id} ended without an error, and what it was to leave is not there."
        return error


def _stuck(run: RunDir, task: Task, before: list[tuple[Path, int, int]]) -> str | None:
    """A sentence on a task that has only `before` to go on from, as it had when it began."""
    from skerch.jobs.config.stages import STAGES

    if _kept(run, task) != before:
        return None
    stage = STAGES[task.stage]
    return (
        f"{task.id} wrote no {stage.resumes} from one time limit to the next, and would never end; "
        f"raise resources.{task.stage}.time{stage.sooner}."
    )


def _kept(run: RunDir, task: Task) -> list[tuple[Path, int, int]]:
    """The files from which a task goes on; one that is written again is another."""
    paths = [run.checkpoint] if task.stage == "train" else task.outputs
    stats = [(path, path.stat()) for path in paths if path.exists()]
    return [(path, stat.st_ino, stat.st_mtime_ns) for path, stat in stats]


def _await(task: Task, tasks: Callable[[], Mapping[str, Task]], patience: float = 60.0) -> None:
    """Wait for what another node has written: a network file system shows it late.

    What never comes is the stage's to name. What is needed is told by the files, too.
    """
    end, there = time.monotonic() + patience, tasks()
    for name in task.needs:
        while not _made_for(task, there[name]) and time.monotonic() < end:
            time.sleep(1.0)
            for folder in {f for path in there[name].outputs for f in list(path.parents)[:2]}:
                with suppress(OSError):
                    os.listdir(folder)  # asks the server
            there = tasks()


def _made_for(task: Task, need: Task) -> bool:
    """Whether what a task needs of another is made."""
    if need.records:
        need = replace(need, records=(task.arguments["step"], task.arguments["split"]))
    return need.made


if __name__ == "__main__":
    main()
