"""What became of the tasks of a run: the disk joined with the scheduler's word."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from skerch.errors import SkerchError
from skerch.files import alive
from skerch.jobs import pipeline
from skerch.jobs.config import Config
from skerch.jobs.config.resources import resources
from skerch.jobs.config.stages import STAGES
from skerch.jobs.launchers.slurm import journal, scheduler
from skerch.jobs.launchers.slurm.observed import PATIENCE, Submitted, observe
from skerch.jobs.launchers.slurm.submit import next_memory
from skerch.jobs.pipeline import Task, task_log
from skerch.jobs.pipeline.ranges import counted, format_ranges
from skerch.jobs.pipeline.task import refusal
from skerch.jobs.run_dir import RunDir, command, method_name

OUT_OF_MEMORY = "out of memory"
KILLED = "killed or stopped, by someone or for lack of memory"
NEEDS = "needs"  # what the reason of a task begins with that another has taken down
FIGURES = re.compile(r"\d+\.\d+(e[+-]\d+)?")  # in which alone reasons of one kind differ
STATES = ("done", "running", "pending", "failed", "lost", "submitted", "missing")


def status(run: RunDir, verify: bool = False) -> dict[str, Any]:
    """What became of each task of each method of the run, and damage.

    A task is `done` by what is on disk. Otherwise the scheduler says whether it is `running` or
    `pending` and why, or how it `failed`; it is `lost` where the scheduler took it and knows it no
    more, and `submitted` where the scheduler, whose silence is in `scheduler`, does not answer. A
    task that nothing was heard of is `missing`. Without a scheduler a task is `running` while its
    process is, and has `failed` where that ended without a word. `next` says what to type.
    """
    run.load()
    silence = None
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(observe, run, PATIENCE)
        configs = [run.load(name) for name in run.methods]
        try:
            known = asked.result()
        except SkerchError as error:
            silence = str(error)
            known = Submitted(journal.submissions(run), {})
    return {
        "run": str(run.path),
        "scheduler": silence,
        "methods": [_method(run, config, known, silence) for config in configs],
        "damaged": sorted({words for config in configs for words in _damage(run, config)})
        if verify
        else None,
    }


def print_status(run: RunDir, as_json: bool, verify: bool) -> bool:
    """Print `status` as tables or as JSON; true if a file is damaged."""
    found = status(run, verify)
    if as_json:
        print(json.dumps(found, indent=1))
        return bool(found["damaged"])
    output = Console()
    if not found["methods"]:
        print(
            f"{run.path} has no method's results, nor their config; to go on: "
            f"{command('run', run.path)}"
        )
    for method in found["methods"]:
        _print_method(output, run, method)
    if found["scheduler"]:
        print(f"Jobs are shown as far as the disk tells: {found['scheduler']}")
    for words in found["damaged"] or ():
        output.print(words, markup=False, soft_wrap=True)
    return bool(found["damaged"])


def _print_method(output: Console, run: RunDir, method: dict[str, Any]) -> None:
    """Counts by stage, then tasks that are alike in one line, and what to do next."""

    def say(words: str) -> None:
        output.print(words, markup=False, highlight=False, soft_wrap=True)

    say(f"{run.path}: {method['name']}")
    states = [s for s in STATES if any(counts[s] for counts in method["stages"].values())]
    table = Table()
    for heading in ("stage", "tasks", *states):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage, counts in method["stages"].items():
        table.add_row(stage, *(str(counts[key] or "") for key in ("tasks", *states)))
    output.print(table)
    needs, alike = Counter[str](), Counter[tuple[str, ...]]()
    waiting = defaultdict[str, list[int]](list)
    for task in method["tasks"]:
        state, reason = task["state"], task["reason"] or ""
        if reason.startswith(NEEDS):
            needs[reason.removeprefix(NEEDS)] += 1
        elif state == "pending":
            waiting[reason].append(int(task["job"].partition("_")[0]))
        elif state in ("running", "failed", "lost"):
            kind = task["stage"], state, FIGURES.sub("", reason)
            alike[kind] += 1
            if alike[kind] == 1 or state == "running":
                for line in _told(run, task):
                    say(line)
    for (stage, state, _), count in alike.items():
        if count > 1 and state != "running":
            say(f"{counted(count - 1, f'more {stage} task')} {state} likewise")
    for cause, count in needs.items():
        say(f"{counted(count, 'more task')} {'needs' if count == 1 else 'need'}{cause}")
    for reason, jobs in waiting.items():
        which = f"job{'s' if len(set(jobs)) > 1 else ''} {format_ranges(sorted(set(jobs)))}"
        say(f"{counted(len(jobs), 'task')} pending ({reason or 'no reason given'}): {which}")
    if method["next"]:
        say(method["next"])


def _told(run: RunDir, task: dict[str, Any]) -> Iterator[str]:
    """Lines on a task that runs or will not be done as things are."""
    job = f" (job {task['job']})" if task["job"] else ""
    reason, last = task["reason"] or "", task["last_line"]
    yield f"{task['id']} {task['state']}{job}{reason and f': {reason}'}"
    if last and task["next"] and reason.removeprefix(f"{OUT_OF_MEMORY}: ") not in last:
        yield f"  last line: {last}"
    if task["log"]:
        yield f"  log: {task['log']}, or {command('logs', run.path, task['id'])}"
    if task["next"]:
        yield f"  next: {task['next']}"


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


def _method(run: RunDir, config: Config, known: Submitted, silence: str | None) -> dict[str, Any]:
    tasks, name = _tasks(run, config, known), method_name(config)
    missing = {task.id for task in pipeline.missing(tasks)}
    found: list[dict[str, Any]] = []
    bad: dict[str, str] = {}  # tasks that will not be done as things are, and the first cause
    for task in tasks:
        entry = _task(run, task, task.id in missing, known, silence)
        cause = next((bad[need] for need in task.needs if need in bad), None)
        if entry["state"] in ("failed", "lost") or (cause and entry["state"] != "done"):
            bad[task.id] = cause or task.id
        untried = entry["state"] in ("pending", "missing") or (
            entry["state"] in ("failed", "lost") and entry["exit_code"] in (None, "0:0")
        )
        if cause and untried:
            entry["reason"] = f"{NEEDS} {cause}, which {_outcome(found, cause)}"
        found.append(entry)
    counts = {task.stage: Counter[str]() for task in tasks}
    for entry in found:
        counts[entry["stage"]].update(["tasks", entry["state"]])
    config_file = run.path if method_name(run.load()) == name else run.hessian_config(name)
    for task, entry in zip(tasks, found, strict=True):
        entry["next"] = None
        if bad.get(task.id) == task.id:
            entry["next"] = _next(run, config, config_file, task, known, entry["reason"])
    return {
        "name": name,
        "stages": {
            stage: {key: counter[key] for key in ("tasks", *STATES)}
            for stage, counter in counts.items()
        },
        "tasks": found,
        "next": _go_on(run, config_file, known, Counter(entry["state"] for entry in found)),
    }


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
        return f"To go on: {command('submit' if known.latest else 'run', config_file)}"
    return None


def _next(
    run: RunDir, config: Config, config_file: Path, task: Task, known: Submitted, reason: str
) -> str:
    """What to type after a task has failed or is lost, with a comment as a shell has it."""
    stage = f"resources.{task.stage}"
    if task.id not in known.latest:
        again = command("run", config_file)
        if reason.startswith(OUT_OF_MEMORY) and config.launcher.workers > 1:
            return f"{again} launcher.workers=1"
        return again
    again = command("submit", config_file)
    if reason.startswith(OUT_OF_MEMORY):
        try:
            memory = next_memory(run, task, known, resources(config)[task.stage])
        except SkerchError as error:
            return str(error)
        return f"{again}  # asks for {memory} MiB"
    if "SIGKILL" in reason:
        return f"{again}  # with a larger {stage}.memory if that was too little"
    if "time limit to the next" in reason or (
        reason == "TIMEOUT" and not STAGES[task.stage].resumes
    ):
        return f"{again} {stage}.time=TIME  # longer than the last"
    return again


def _outcome(found: list[dict[str, Any]], task: str) -> str:
    return "is lost" if any(e["id"] == task and e["state"] == "lost" for e in found) else "failed"


def _task(
    run: RunDir, task: Task, missing: bool, known: Submitted, silence: str | None
) -> dict[str, Any]:
    """One task's state, and what is known of its job."""
    submission, element = known.latest.get(task.id), known.element(task.id)
    live = known.live.get(task.id)
    if live is not None:
        element = known.elements[live.token, live.elements[task.id]]
    log, attempt = run.task_log(task.id), ""
    if missing:
        attempt = task_log.last_attempt(run, task.id, submission.when if submission else 0.0)
    error = task_log.error(attempt)
    state, reason = "missing", None
    if not missing:
        state = "done"
    elif live is not None and element is not None:
        state = "pending" if element.pending else "running"
        reason = element.reason or element.node
    elif scheduler.ran_out_of_memory(element, attempt):
        state, reason = "failed", OUT_OF_MEMORY + (f": {error}" if error else "")
    elif element is not None and element.state != "COMPLETED":
        state, reason = "failed", error or element.outcome
    elif error:
        state, reason = "failed", error
    elif submission and silence:
        state = "submitted"
    elif submission:
        state, reason = "lost", "the scheduler knows it no more, and it left no result"
        if element is not None:
            reason = "it ended well, but its result is not to be seen here"
    elif (process := task_log.process(attempt)) and alive(process):
        state, reason = "running", f"process {process} of this machine"
    elif process:
        state, reason = "failed", f"its process {process} was {KILLED}"
    lines = [
        line for line in attempt.splitlines() if line.strip() and not scheduler.ECHO.match(line)
    ]
    return {
        "id": task.id,
        "stage": task.stage,
        "state": state,
        "reason": reason,
        "job": element.job if element else submission and submission.job_of(task.id),
        "node": element.node if element else None,
        "exit_code": element.exit_code if element and element.ended else None,
        "log": str(log) if log.exists() else None,
        "last_line": lines[-1] if lines else None,
    }
