"""In an allocation of Slurm: every task is a step of its own, on any node, and many run at once.

A step is `skerch.jobs.launchers.slurm.task` under srun. It ends when this process is gone, as it
follows its standard input.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import IO

from skerch.jobs.config import Config
from skerch.jobs.config.resources import resources
from skerch.jobs.launchers import Report
from skerch.jobs.launchers.local import run_task, skipped
from skerch.jobs.launchers.slurm import allocation, inside, programs, scheduler
from skerch.jobs.launchers.slurm.allocation import Room
from skerch.jobs.launchers.slurm.programs import SlurmError
from skerch.jobs.pipeline import Task, task_log
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.program import omp_threads

LOOKS = 0.1  # seconds between two looks at the steps
TELLS = 2.0  # seconds between two looks at how far their tasks are
PATIENCE = 10.0  # seconds that a step has to end
LOST = re.compile(r"^srun: error: Node failure on ", re.MULTILINE)


def launch(config: Config, tasks: list[Task], report: Report) -> dict[str, str]:
    """Run the tasks as steps; a failed one takes down what needs it, and nothing else.

    Raises SlurmError where there is no allocation, or it ends before the tasks do.
    """
    steps = _Steps(config)
    failures: dict[str, str] = {}
    waiting = {task.id: task for task in tasks}
    lost: set[str] = set()  # on a node that failed
    told = 0.0
    try:
        while waiting or steps.running:
            unfinished = waiting.keys() | {step.task.id for step in steps.running}
            for task in [t for t in waiting.values() if not unfinished & set(t.needs)]:
                error = skipped(task, failures)
                if error is None and (error := steps.too_large(task)):
                    report.ended(task, error)
                if error is not None:
                    failures[task.id] = error
                elif steps.start(task):
                    report.started(task)
                else:
                    continue
                del waiting[task.id]
            time.sleep(LOOKS)
            for task, error, of_node in steps.ended():
                if of_node and task.id not in lost:
                    lost.add(task.id)
                    waiting[task.id] = task
                    continue
                if error is not None:
                    failures[task.id] = error
                report.ended(task, error)
            if time.monotonic() > told + TELLS:
                told = time.monotonic()
                for step in steps.running:
                    if progress := _progress(steps.run, step.task):
                        report.progress(step.task, *progress)
    finally:
        steps.end()
    return failures


@dataclass(frozen=True)
class _Step:
    """A task that runs."""

    task: Task
    needs: Room
    process: subprocess.Popen[bytes]
    said: IO[bytes]  # by the task and by srun

    def words(self) -> str:
        """What was said so far."""
        size = os.fstat(self.said.fileno()).st_size
        return os.pread(self.said.fileno(), size, 0).decode(errors="replace")


class _Steps:
    """The steps of an allocation."""

    def __init__(self, config: Config):
        job = os.environ.get("SLURM_JOB_ID")
        if job is None:
            raise SlurmError(
                "launcher.name=srun is for within a job, and SLURM_JOB_ID is not set: call salloc "
                "first, as in salloc --nodes=2 --ntasks=8; or take: python -m skerch submit."
            )
        self.run = RunDir(config.run_dir)
        self.running: list[_Step] = []
        self._job, self._config, self._wanted = job, config, resources(config)
        self._all, self._node = allocation.allocation(job)
        print(
            f"Tasks run as steps of job {job}, which has {self._all}; launcher.name=local keeps "
            "them here."
        )

    def too_large(self, task: Task) -> str | None:
        """Why there is never room for a task: Slurm would let it wait for ever."""
        needs = self._needs(task)
        if self._node.holds([needs]):
            return None
        return (
            f"it needs {needs}, and no node of job {self._job} has more than {self._node}: lower "
            f"resources.{task.stage}, or ask salloc for more"
        )

    def start(self, task: Task) -> bool:
        """Start a task, if there is room for it now."""
        needs = self._needs(task)
        if not self._all.holds([needs, *(step.needs for step in self.running)]):
            return False
        said = tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            self._command(task, needs),
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env=programs.environment()
            | {"SLURM_RESTART_COUNT": f"{time.time():.0f}"},  # the latest
            start_new_session=True,  # Ctrl-C is for this process
        )
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(b"\n")
        self.running.append(_Step(task, needs, process, said))
        return True

    def ended(self) -> list[tuple[Task, str | None, bool]]:
        """The tasks that have ended, why they failed, and whether their node did.

        Raises SlurmError where the whole job has ended.
        """
        for step in self.running:
            if step.process.poll() is None and LOST.search(step.words()):  # srun may wait for ever
                step.process.kill()
                step.process.wait()
        over = [step for step in self.running if step.process.poll() is not None]
        return [self._close(step) for step in over]

    def end(self) -> None:
        """End what still runs."""
        for step in self.running:
            step.process.stdin.close()  # type: ignore[union-attr]
            step.process.terminate()
        for step in self.running:
            try:
                step.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                step.process.kill()

    def _close(self, step: _Step) -> tuple[Task, str | None, bool]:
        """What became of a task whose step is over."""
        self.running.remove(step)
        status, task = step.process.returncode, step.task
        step.process.stdin.close()  # type: ignore[union-attr]
        words = step.words()
        step.said.close()
        with suppress(OSError), self.run.task_log(task.id).open("a", encoding="utf-8") as log:
            log.write(words)
        for folder in {path.parent for path in task.outputs}:
            with suppress(OSError):
                os.listdir(folder)  # a network file system shows late what other nodes wrote
        lost = LOST.search(words) is not None  # with which srun may end well
        if not status and not lost:
            return task, None, False
        if error := task_log.error(words):  # the task's own
            return task, error, False
        self._all, self._node = allocation.allocation(self._job)  # less, where a node failed
        error = "its node failed" if lost else _death(task, status, words)
        run_task(self._config, task, work=partial(_fail, error))  # into its log, too
        return task, error, lost

    def _needs(self, task: Task) -> Room:
        """What a task takes: by default the CPUs of a task of the allocation, and a GPU."""
        wanted, launcher = self._wanted[task.stage], self._config.launcher
        gpus = wanted.gpus
        if gpus is None:
            gpus = int(self._all.gpus > 0 and launcher.device != "cpu")
        cpus = wanted.cpus or launcher.threads or omp_threads() or inside.cpus()
        return Room(cpus or max(1, self._all.cpus // inside.tasks()), wanted.memory or 0, gpus)

    def _command(self, task: Task, needs: Room) -> list[str]:
        """The command of a step; without a memory of its own it shares the job's."""
        program = [sys.executable, "-u", "-m", "skerch.jobs.launchers.slurm.task"]
        return [
            *("srun", "--quiet", f"--jobid={self._job}", f"--job-name={task.id}"),
            *("--nodes=1", "--ntasks=1", "--exact", f"--cpus-per-task={needs.cpus}"),
            f"--mem={needs.memory}M" if needs.memory else "--mem=0",
            f"--gpus-per-node={needs.gpus}" if needs.gpus else "--gres=none",
            *self._wanted[task.stage].srun,
            *program,
            *(str(self.run.path), task.id, "--name", method_name(self._config), "--follow"),
        ]


def _death(task: Task, status: int, said: str) -> str:
    """Why a step ended that left no word of its task."""
    if scheduler.ran_out_of_memory(None, said):
        return f"out of memory; raise resources.{task.stage}.memory, or take smaller batches"
    signal = -status if status < 0 else status - 128
    *_, last = ("", *(line.strip() for line in said.splitlines() if line.strip()))
    return f"its step is over, {task_log.ending(status, signal)}{last and f': {last}'}"


def _fail(error: str, stage: str, context: Context) -> None:
    raise SlurmError(error)


def _progress(run: RunDir, task: Task) -> tuple[int, int, str] | None:
    """How far a task is, by its log."""
    lines = task_log.PROGRESS.findall(task_log.last_attempt(run, task.id))
    found = lines and re.match(r"(\d+)(?:/(\d+))? ([^,]+),", lines[-1])
    return (int(found[1]), int(found[2] or 0), found[3]) if found else None
