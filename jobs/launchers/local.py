"""Here: in this process, one task after the other, or in a few worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_end
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError
from skerch.files import print_always, refusals_named
from skerch.jobs.config import Config
from skerch.jobs.launchers import Report
from skerch.jobs.pipeline import Task
from skerch.jobs.pipeline.task_log import Progress, ending, record_death, recorded
from skerch.jobs.problems import describe
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.program import execute


def launch(config: Config, tasks: list[Task], report: Report) -> dict[str, str]:
    """Run the tasks; a failed one takes down what needs it, and nothing else."""
    if config.launcher.workers == 1:
        return _in_process(config, tasks, report)
    return _in_pool(config, tasks, report)


def run_task(
    config: Config,
    task: Task,
    report: Report | None = None,
    work: Callable[[str, Context], None] = execute,
) -> str | None:
    """Run one task in this process, into its log; the sentence of its failure, if it fails."""
    run = RunDir(config.run_dir)
    try:
        with refusals_named(), recorded(run, task) as log:

            def progress(done: int, total: int, unit: str) -> None:
                log(done, total, unit)
                if report:
                    report.progress(task, done, total, unit)

            work(task.stage, context_of(config, task, progress))
    except (Exception, SystemExit) as error:  # a defect or a user's code: it fails this task only
        return sentence(error, run.task_log(task.id))
    return None


def sentence(error: BaseException, log: Path) -> str:
    """A failure in a sentence; what is no user's mistake has its traceback in the log."""
    trace = "" if isinstance(error, SkerchError) else f"; the traceback is in {log}"
    return f"{describe(error)}{trace}"


def context_of(config: Config, task: Task, progress: Progress) -> Context:
    """What the stage of a task gets."""
    arguments = {"name": method_name(config)} | task.arguments
    if "tasks" in arguments:
        arguments["tasks"] = tuple(arguments["tasks"])
    return Context(RunDir(config.run_dir), config, progress=progress, **arguments)


def skipped(task: Task, failures: dict[str, str]) -> str | None:
    """Why a task cannot run, if one that it needs has failed."""
    failed = next((need for need in task.needs if need in failures), None)
    return None if failed is None else f"not run, as it needs {failed}"


def _in_process(config: Config, tasks: list[Task], report: Report) -> dict[str, str]:
    failures: dict[str, str] = {}
    for task in tasks:
        error = skipped(task, failures)
        if error is None:
            report.started(task)
            error = run_task(config, task, report)
            report.ended(task, error)
        if error is not None:
            failures[task.id] = error
    return failures


def _in_pool(config: Config, tasks: list[Task], report: Report) -> dict[str, str]:
    failures: dict[str, str] = {}
    waiting = {task.id: task for task in tasks}
    running: dict[Future[str | None], Task] = {}
    workers: set[BaseProcess] = set()
    spawn = multiprocessing.get_context("spawn")
    messages, sender = spawn.Pipe(duplex=False)
    following = _Following(report, tasks)
    threading.Thread(target=following.listen, args=(messages,), daemon=True).start()
    pool = ProcessPoolExecutor(
        config.launcher.workers, spawn, initializer=_start_worker, initargs=(sender,)
    )
    try:
        while waiting or running:
            unfinished = waiting.keys() | {task.id for task in running.values()}
            for task in [t for t in waiting.values() if not unfinished & set(t.needs)]:
                del waiting[task.id]
                error = skipped(task, failures)
                if error is not None:
                    failures[task.id] = error
                    continue
                running[pool.submit(_run_in_worker, config, task)] = task
            workers |= set(multiprocessing.active_children())
            done, _ = wait(running, return_when=FIRST_COMPLETED) if running else (set(), None)
            for future in done:
                task = running.pop(future)
                error = future.result()
                if error is not None:
                    failures[task.id] = error
                following.ended(task, error)
        pool.shutdown()  # a queue that its process ends first would lose what tells workers to
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    except BrokenProcessPool:
        pool.shutdown()  # until all workers have ended
        death = _deaths(config, [task, *running.values()], workers)
        raise SkerchError(
            f"A worker process has died, {death}. What is finished is kept: run the same command "
            "again to go on, with a smaller launcher.workers if memory was short."
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return failures


def _deaths(config: Config, tasks: list[Task], workers: set[BaseProcess]) -> str:
    """Record how workers ended that have left tasks without a word; which one did so, and how."""
    run, told = RunDir(config.run_dir), "killed by someone or for lack of memory"
    for worker in workers:
        assert worker.pid is not None
        code = worker.exitcode or 0
        stopped = code == -signal.SIGTERM  # by the pool, once another has ended
        end = "stopped, as another worker ended" if stopped else ending(code, max(0, -code))
        for task in tasks:
            if record_death(run, task, worker.pid, end) and not stopped:
                told = f"at {task.id}: {end}"
    return told


class _Following:
    """Reports what workers say of their tasks, in a thread, until each one ends."""

    def __init__(self, report: Report, tasks: list[Task]):
        self._report = report
        self._tasks = {task.id: task for task in tasks}
        self._started: set[str] = set()
        self._lock = threading.Lock()

    def listen(self, messages: Connection) -> None:
        with suppress(EOFError):  # when the last sender is closed
            while True:
                self._tell(*messages.recv())

    def ended(self, task: Task, error: str | None) -> None:
        self._tell(task.id)
        with self._lock:
            del self._tasks[task.id]
            self._report.ended(task, error)

    def _tell(self, task_id: str, *progress: Any) -> None:
        with self._lock:
            task = self._tasks.get(task_id)
            if task is None:
                return
            if task_id not in self._started:
                self._started.add(task_id)
                self._report.started(task)
            if progress:
                self._report.progress(task, *progress)


class _Messenger:
    """A worker's report to the process that started it.

    A message is smaller than what a pipe takes at once, so that workers need no lock, which a
    killed one would keep.
    """

    def __init__(self, sender: Connection):
        self._sender = sender

    def started(self, task: Task) -> None:
        self._sender.send((task.id,))

    def progress(self, task: Task, done: int, total: int, unit: str) -> None:
        self._sender.send((task.id, done, total, unit))

    def ended(self, task: Task, error: str | None) -> None:
        """The process that started it sees that itself."""


_messenger: _Messenger  # of this worker process


def _run_in_worker(config: Config, task: Task) -> str | None:
    _messenger.started(task)
    return run_task(config, task, _messenger)


def _start_worker(sender: Connection) -> None:
    """A worker ends at once on Ctrl-C, and when its parent is gone, whatever happened to it."""
    global _messenger
    print_always()
    _messenger = _Messenger(sender)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait_for_end([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
