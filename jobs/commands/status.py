"""What became of the tasks of a run: the disk joined with the scheduler's word."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.table import Table

from skerch.errors import SkerchError
from skerch.jobs import pipeline
from skerch.jobs.commands import cost
from skerch.jobs.config import Config
from skerch.jobs.config.resources import resources
from skerch.jobs.launchers.slurm import journal
from skerch.jobs.launchers.slurm.accounting import starts
from skerch.jobs.launchers.slurm.cost import Proposal, StageCost, attempts, by_stage, proposal
from skerch.jobs.launchers.slurm.failures import hopeless
from skerch.jobs.launchers.slurm.jobs import healing_id
from skerch.jobs.launchers.slurm.observed import (
    PATIENCE,
    STATES,
    Submitted,
    TaskState,
    kind,
    observe_all,
)
from skerch.jobs.launchers.slurm.raised import next_request
from skerch.jobs.pipeline import Task, task_log
from skerch.jobs.pipeline.ranges import counted, format_ranges
from skerch.jobs.pipeline.task import refusal
from skerch.jobs.run_dir import RunDir, command, method_name, shown

FIGURES = re.compile(r"\d+\.\d+(e[+-]\d+)?")  # in which alone reasons of one kind differ
LIVING = ("running", "pending", "submitted")  # states of tasks that somebody is at
FEW, WIDE = 90, 240  # characters of what is told of a method; columns of a file with a table
UNSHOWN = ("error", "cause", "needs", "live")  # in JSON


@dataclass(frozen=True)
class MethodStatus:
    """What became of a method's tasks."""

    name: str
    stages: dict[str, dict[str, int]]  # how many tasks a stage has, and how many of each state
    tasks: list[TaskState]
    next: str | None  # what to do once all are done, or where none has begun that is not
    refused: str | None = None  # the error with which the last job of its chain ended


@dataclass(frozen=True)
class RunStatus:
    """What became of a run, as `status --json` has it."""

    run: str
    scheduler: str | None  # why it says nothing
    methods: list[MethodStatus]
    cost: list[StageCost]
    proposed: Proposal  # to ask for next time
    damaged: list[str] | None  # a sentence a file; None where they were not read
    live: bool  # whether jobs wait or run, be it one that submits again what has failed


def status(runs: Sequence[RunDir], verify: bool = False) -> list[RunStatus]:
    """What became of each task of each method of some runs, and damage.

    A task is `done` by what is on disk. Otherwise the scheduler says whether it is `running` or
    `pending` and why, or how it `failed`; it is `lost` where the scheduler took it and knows it no
    more, and `submitted` where the scheduler, whose silence is in `scheduler`, does not answer. A
    task that nothing was heard of is `missing`. Without a scheduler a task is `running` while its
    process is, and has `failed` where that ended without a word. `next` says what to type.
    """
    for run in runs:
        run.load()
    submissions = [s for run in runs for s in journal.submissions(run)]
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(observe_all, runs, PATIENCE)
        used = pool.submit(starts, submissions, PATIENCE)
        configs = [[run.load(name) for name in run.methods] for run in runs]
        known, began = asked.result(), used.result()
    found = []
    for run, own, submitted in zip(runs, configs, known, strict=True):
        tried = attempts(run, submitted, began)
        found.append(
            RunStatus(
                run=str(run.path),
                scheduler=submitted.silence,
                methods=[_method(run, config, submitted) for config in own],
                cost=by_stage(tried),
                proposed=proposal(tried),
                damaged=sorted({words for config in own for words in _damage(run, config)})
                if verify
                else None,
                live=bool(submitted.live),
            )
        )
    return found


def exit_status(found: Sequence[RunStatus], *, by_tasks: bool) -> int:
    """1 where a file is damaged, else 0; `by_tasks` the largest of what the runs are.

    0: all is done; 3: something waits or runs; 4: something is not done, and nothing waits or runs.
    """
    if any(run.damaged for run in found):
        return 1
    return max(map(_exit_status, found)) if by_tasks else 0


def _exit_status(run: RunStatus) -> int:
    states = {task.state for method in run.methods for task in method.tasks}
    if states == {"done"}:
        return 0
    return 3 if run.live or states & {*LIVING} else 4


def print_status(found: Sequence[RunStatus], *, as_json: bool, several: bool) -> None:
    """Print the status of one run as tables, of `several` as one; or as JSON, then a list."""
    if as_json:
        print(json.dumps(found if several else found[0], default=_as_json, indent=1))
        return
    output = Console()
    if several:
        _print_runs(output, found)
    else:
        _print_run(output, found[0])
    for silence in {run.scheduler: None for run in found if run.scheduler}:
        print(f"Jobs are shown as far as the disk tells: {silence}")
    for words in (words for run in found for words in run.damaged or ()):
        output.print(words, markup=False, soft_wrap=True)


def _print_runs(output: Console, found: Sequence[RunStatus]) -> None:
    """A line a run and method: how many of its tasks have each state, and one thing to know."""
    if not output.is_terminal:
        output.width = WIDE
    every = [task.state for run in found for method in run.methods for task in method.tasks]
    states = [state for state in STATES if state in every]
    table = Table()
    for heading in ("run", "method", *states, "of", "note"):
        number = heading in (*states, "of")
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for run in found:
        for method in run.methods or [MethodStatus("", {}, [], None)]:
            counts = Counter[str](task.state for task in method.tasks)
            numbers = [str(counts[state] or "") for state in states]
            name, total = shown(Path(run.run)), str(len(method.tasks))
            table.add_row(name, method.name, *numbers, total, _brief(run, method))
    output.print(table, markup=False)


def _brief(run: RunStatus, method: MethodStatus) -> str:
    """A method's first failure in few words; else what runs or waits, or what to type."""
    for states in (("failed", "lost"), ("running",), ("pending", "submitted")):
        task = next((t for t in method.tasks if t.state in states and not t.needs), None)
        if task is not None:
            words = f"{task.id} {task.state}: {task.reason or ''}".rstrip(": ")
            for known in (f"{run.run}/", f"{method.name}/", f"{method.name}."):
                words = words.replace(known, "")
            return shorten(words, FEW, placeholder=" …")
    if any(task.state != "done" for task in method.tasks):
        return "to go on: run" if "skerch run" in (method.next or "") else "to go on: submit"
    return ""


def _print_run(output: Console, found: RunStatus) -> None:
    """A run's methods in full."""
    run = RunDir(found.run)
    if not found.methods:
        print(
            f"{run.path} has no method's results, nor their config; to go on: "
            f"{command('run', run.path)}"
        )
    for number, method in enumerate(found.methods, start=1):
        if found.damaged:  # which is no end, though all files are there
            method = replace(method, next=None)
        _print_method(output, run, method, found.cost if number == len(found.methods) else [])


def _as_json(status: RunStatus | MethodStatus | TaskState | StageCost) -> dict[str, Any]:
    return {name: value for name, value in vars(status).items() if name not in UNSHOWN}


def _print_method(
    output: Console, run: RunDir, method: MethodStatus, costs: list[StageCost]
) -> None:
    """Counts by stage, costs, then tasks that are alike in one line, and what to do next."""

    def say(words: str) -> None:
        output.print(words, markup=False, highlight=False, soft_wrap=True)

    say(f"{run.path}: {method.name}")
    states = [s for s in STATES if any(counts[s] for counts in method.stages.values())]
    table = Table()
    for heading in ("stage", "tasks", *states):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage, counts in method.stages.items():
        table.add_row(stage, *(str(counts[key] or "") for key in ("tasks", *states)))
    output.print(table)
    if costs:
        output.print(cost.table(costs))
    needs, alike = Counter[str](), Counter[tuple[str, ...]]()
    waiting = defaultdict[str, list[int]](list)
    for task in method.tasks:
        if task.needs:
            needs[_cause(task.needs)] += 1
        elif task.state == "pending" and task.job:
            waiting[task.reason or ""].append(int(task.job.partition("_")[0]))
        elif task.state in ("running", "failed", "lost"):
            kind = task.stage, task.state, FIGURES.sub("", task.reason or "")
            alike[kind] += 1
            if alike[kind] == 1 or task.state == "running":
                for line in _told(run, task):
                    say(line)
    for (stage, state, _), count in alike.items():
        if count > 1 and state != "running":
            say(f"{counted(count - 1, f'more {stage} task')} {state} likewise")
    for cause, count in needs.items():
        say(f"{counted(count, 'more task')} {'needs' if count == 1 else 'need'} {cause}")
    if method.refused:
        last = healing_id(method.name)
        say(f"{last}, which submits what is left, failed: {method.refused}")
        say(f"  log: {run.task_log(last)}")
    for reason, jobs in waiting.items():
        which = f"job{'s' if len(set(jobs)) > 1 else ''} {format_ranges(sorted(set(jobs)))}"
        say(f"{counted(len(jobs), 'task')} pending ({reason or 'no reason given'}): {which}")
    if method.next:
        say(method.next)


def _told(run: RunDir, task: TaskState) -> Iterator[str]:
    """Lines on a task that runs or will not be done as things are."""
    job = f" (job {task.job})" if task.job else ""
    yield f"{task.id} {task.state}{job}{f': {task.reason}' if task.reason else ''}"
    if task.state == "running" and (told := task_log.PROGRESS.match(task.last_line or "")):
        yield f"  so far: {told[1]}"
    if task.last_line and task.next and (task.error or task.reason or "") not in task.last_line:
        yield f"  last line: {task.last_line}"
    if task.log:
        yield f"  log: {task.log}, or {command('logs', run.path, task.id)}"
    if task.next:
        yield f"  next: {task.next}"


def _damage(run: RunDir, config: Config) -> Iterator[str]:
    """A sentence on each file that cannot be read back as it was written."""
    from skerch.hdf5 import verify
    from skerch.jobs.config import load_resolved
    from skerch.jobs.run_dir import training_files  # imports torch; the rest of `status` does not

    yield from refusal(run.training_config, partial(load_resolved, run.training_config))
    yield from refusal(run.parameters, partial(verify, run.parameters))
    yield from refusal(run.checkpoint, partial(training_files.load_checkpoint, run.checkpoint))
    if run.parameters.exists():  # they have the hashes of the other files
        yield from refusal(run.log, partial(training_files.check_log, run))
        yield from refusal(run.hessian_data, partial(training_files.check_hessian_data, run))
    whole = run.grown(config)
    for task in pipeline.tasks(whole)[1:]:
        directory = run.step(**{key: task.arguments[key] for key in ("name", "step", "split")})
        yield from pipeline.method_of(whole).damage(directory, task.outputs)


def _method(run: RunDir, config: Config, known: Submitted) -> MethodStatus:
    tasks, name = _tasks(run, config, known), method_name(config)
    missing = {task.id for task in pipeline.missing(tasks)}
    tasks = [task for task in tasks if task.outputs or task.id in known.live]  # that are needed
    config_file = run.path if method_name(run.load()) == name else run.hessian_config(name)
    found: list[TaskState] = []
    bad: dict[str, TaskState] = {}  # of a task that will not be done as things are, the first cause
    for task in tasks:
        state = known.state(run, task, missing)
        cause = next((bad[need] for need in task.needs if need in bad), None)
        ended = state.state in ("failed", "lost")
        if ended and not cause:
            state = replace(state, next=_next(run, config, config_file, task, known, state))
        if ended or (cause and state.state != "done"):
            bad[task.id] = cause or state
        untried = (
            state.exit_code in (None, "0:0") if ended else state.state in ("pending", "missing")
        )
        if cause and untried:
            state = replace(state, reason=f"needs {_cause(cause)}", needs=cause)
        found.append(state)
    counts = {task.stage: Counter[str]() for task in tasks}
    for state in found:
        counts[state.stage].update(["tasks", state.state])
    return MethodStatus(
        name=name,
        stages={
            stage: {key: counter[key] for key in ("tasks", *STATES)}
            for stage, counter in counts.items()
        },
        tasks=found,
        next=_go_on(run, config_file, known, Counter[str](state.state for state in found)),
        refused=_refused(run, known, healing_id(name)) if missing else None,
    )


def _refused(run: RunDir, known: Submitted, last: str) -> str | None:
    """The error with which the last job of a chain ended, unless another is to come."""
    submission = known.latest.get(last)
    if submission is None or last in known.live:
        return None
    return task_log.error(task_log.last_attempt(run, last, submission.when))


def _cause(task: TaskState) -> str:
    """What takes other tasks down, in words."""
    return f"{task.id}, which {'is lost' if task.state == 'lost' else 'failed'}"


def _tasks(run: RunDir, config: Config, known: Submitted) -> list[Task]:
    """The tasks of a method's latest run, those of other results, and those of live jobs."""
    hessians = set(run.hessians(config))
    training, *others = pipeline.tasks(config)[:1] + pipeline.tasks(run.grown(config))[1:]
    of = itemgetter("step", "split")
    return [training, *(t for t in others if of(t.arguments) in hessians or t.id in known.live)]


def _go_on(run: RunDir, config_file: Path, known: Submitted, states: Counter[str]) -> str | None:
    """What to do once all tasks are done, or where none has begun that is not."""
    if states.keys() == {"done"}:
        done = counted(states["done"], "task")
        return f"All {done} are done; see: {command('results', run.path)}"
    if states.keys() <= {"done", "missing"}:
        return f"To go on: {command('submit' if known.history else 'run', config_file)}"
    return None


def _next(
    run: RunDir, config: Config, config_file: Path, task: Task, known: Submitted, state: TaskState
) -> str:
    """What to type after a task has failed or is lost, with a comment as a shell has it."""
    stage = f"resources.{task.stage}"
    if task.id not in known.latest:
        again = command("run", config_file)
        if state.cause == "memory" and config.launcher.workers > 1:
            return f"{again} launcher.workers=1"
        return again
    again = command("submit", config_file)
    heals, wanted = config.launcher.heals, resources(config)[task.stage]
    if (healing := known.live.get(healing_id(method_name(config)))) and not hopeless(
        run, heals, task, {task.id: task}, known, wanted, state
    ):
        return f"job {healing.job} submits it again, when the others have ended"
    if lacked := known.lacked(run, task, [task.id]):
        try:
            asked = next_request(run, [task], [task.id], known, wanted)
        except SkerchError as error:
            return str(error)
        amount, unit = (asked.memory, "MiB") if lacked == "memory" else (asked.time, "min")
        return f"{again}  # asks for {amount} {unit}" if amount else again
    if known.latest[task.id].because.get(task.id) == kind(state):
        return f"{again}  # once that is mended: it failed twice the same way"
    if state.cause == "killed":
        return f"{again}  # with a larger {stage}.memory if that was too little"
    return again
