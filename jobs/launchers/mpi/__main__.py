"""The program of each rank.

The first rank runs the tasks in order and writes all files but blocks. To the tasks of stages
that are shared it calls the others, who sleep meanwhile.

    python -m skerch.jobs.launchers.mpi RUN|EXPERIMENT.yaml [key=value …] [--name seigh]

is started by mpiexec in `launch`, or on a cluster by srun.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import groupby
from typing import TYPE_CHECKING, Any

from skerch.errors import SkerchError
from skerch.files import print_always, refusals_named
from skerch.jobs import pipeline
from skerch.jobs.config import Config, load
from skerch.jobs.config.stages import STAGES
from skerch.jobs.launchers import Report, lifeline
from skerch.jobs.launchers.local import context_of, run_task, skipped
from skerch.jobs.launchers.mpi.launch import WAYS_OUT, MpiError
from skerch.jobs.launchers.mpi.ranks import RankError, Ranks
from skerch.jobs.pipeline import Task
from skerch.jobs.pipeline.task_log import Progress, silent
from skerch.jobs.run_dir import RunDir
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.program import execute

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class _Messages:
    """The first rank's report to the process that started it, as lines of JSON."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def say(self, *words: Any) -> None:
        """One line, in one piece."""
        os.write(self._descriptor, json.dumps(words).encode() + b"\n")

    def started(self, task: Task) -> None:
        """A task starts."""
        self.say("started", task.id)

    def progress(self, task: Task, done: int, total: int, unit: str) -> None:
        """A task has done some of its work."""
        self.say("progress", task.id, done, total, unit)

    def ended(self, task: Task, error: str | None) -> None:
        """A task is done or failed."""
        self.say("ended", task.id, error)


def _run(ranks: Ranks, config: Config, tasks: list[Task], report: Report) -> dict[str, str]:
    """On the first rank: run the tasks in order, those that are shared with the others."""
    config = replace(config, launcher=replace(config.launcher, workers=ranks.sharing))
    failures: dict[str, str] = {}
    for task, parts in _joined(tasks):
        error = skipped(task, failures)
        if error is not None:
            failures |= dict.fromkeys((part.id for part in parts), error)
            continue
        report.started(task)
        work = partial(_lead, ranks, config, task) if STAGES[task.stage].shared else execute
        error = run_task(config, task, report, work)
        for folder in {path.parent for part in parts for path in part.outputs}:
            with suppress(OSError):
                os.listdir(folder)  # a network file system shows late what other nodes wrote
        failed = []
        if error is not None:
            failed = [p for p in parts if not all(map(os.path.exists, p.outputs))] or parts
        for part in parts:
            if part.id != task.id:
                report.started(part)
                if error is not None and part in failed:
                    run_task(config, part, work=partial(_fail, error))  # into its log, too
            report.ended(part, error if part in failed else None)
        failures |= {part.id: error for part in failed if error is not None}
    return failures


def _joined(tasks: list[Task]) -> Iterator[tuple[Task, list[Task]]]:
    """The tasks, those of one measurement array as one task that has the first one's id."""

    def key(task: Task) -> str:
        return task.array or task.id

    for _, group in groupby(tasks, key):
        parts = list(group)
        whole = parts[0]
        if whole.array:
            numbers = [number for part in parts for number in part.arguments["tasks"]]
            whole = replace(whole, arguments=whole.arguments | {"tasks": numbers})
        yield whole, parts


def _lead(ranks: Ranks, config: Config, task: Task, stage: str, context: Context) -> None:
    """On the first rank: call the others to a task, and work on it with them."""
    ranks.one(lambda: (config, task))
    _work(ranks, config, task, context.progress)


def _follow(ranks: Ranks) -> int:
    """On the others: work on what the first one calls to, until it is done; the exit status."""
    import_module("skerch.jobs.stages.measure")  # while the first one trains
    while True:
        with suppress(RankError):
            called = ranks.one(lambda: None)
            if called is None:
                return 0
            config, task = called
            _work(ranks, config, task, silent)


def _work(ranks: Ranks, config: Config, task: Task, progress: Progress) -> None:
    """On every rank: its part of a task."""
    ranks.log = RunDir(config.run_dir).task_log(task.id)
    context = replace(context_of(config, task, progress), team=ranks)
    ranks.together(lambda: execute(task.stage, context))


def _fail(error: str, stage: str, context: Context) -> None:
    raise RankError(error)


def main() -> None:
    """The program of each rank."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = argparse.ArgumentParser(prog="python -m skerch.jobs.launchers.mpi")
    parser.add_argument("run", help="a run directory, or an experiment file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as of skerch run")
    parser.add_argument("--name", help="the method's folder; default: that of the latest run")
    parser.add_argument("--ranks", type=int, help=argparse.SUPPRESS)  # as many as `launch` started
    options = parser.parse_args()
    print_always()
    messages = None
    if options.ranks:
        messages = _Messages(os.dup(1))
        os.dup2(2, 1)
    try:
        ranks = Ranks(_joined_ranks(options.ranks))
    except MpiError as error:
        sys.exit(_refuse(error, messages))
    try:
        status = _first(ranks, options, messages) if ranks.writes else _follow(ranks)
    except BaseException:  # the others would wait for ever
        traceback.print_exc()
        ranks.abort()
    sys.exit(status)


def _joined_ranks(started: int | None) -> Intracomm:
    """All ranks; raises MpiError where MPI is not here, or does not join what was started."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise MpiError(f"mpi4py finds no MPI library ({words}): {WAYS_OUT}") from error
    comm = MPI.COMM_WORLD
    started = started or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if comm.size == 1 < started:
        library = MPI.Get_library_version().splitlines()[0]
        raise MpiError(
            f"{started} ranks were started, and each finds itself alone: what started them is not "
            f"of the MPI that mpi4py has loaded ({library}). Load one MPI module for both, or "
            "choose srun's --mpi to match."
        )
    return comm


def _first(ranks: Ranks, options: argparse.Namespace, messages: _Messages | None) -> int:
    """The first rank's program; its exit status."""
    from skerch.jobs.commands.results import print_table  # as of a command of a person
    from skerch.jobs.launchers.complete import complete

    status = 0
    try:
        with refusals_named():
            run, name = RunDir(options.run), options.name
            if messages:
                lifeline.follow()  # and so end all ranks
                config = run.load(name)
                missing = pipeline.missing(pipeline.tasks(config))
                messages.say("failures", _run(ranks, config, missing, messages))
            else:
                config = run.load(name) if name else load(options.run, options.overrides)
                status = 1 if complete(config, partial(_run, ranks)) else 0
                print_table(config)
    except SkerchError as error:
        status = _refuse(error, messages)
    ranks.one(lambda: None)
    return status


def _refuse(error: SkerchError, messages: _Messages | None) -> int:
    """Say why nothing can be done; the exit status."""
    if messages:
        messages.say("refused", str(error))
    else:
        print(f"error: {error}", file=sys.stderr)
    return error.exit_status


if __name__ == "__main__":
    main()
