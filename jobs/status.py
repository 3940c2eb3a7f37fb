"""What became of the tasks of a run: the disk joined with the scheduler's word."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from skerch.errors import SkerchError
from skerch.jobs import journal, overlap_file, pipeline, task_log
from skerch.jobs.config import Config
from skerch.jobs.launchers import slurm
from skerch.jobs.pipeline import Task
from skerch.jobs.run_dir import RunDir, StepDir, method_name
from skerch.jobs.submitted import PATIENCE, Submitted, observe

NEEDS = "needs"  # what the reason of a task begins with that another has taken down
STATES = ("done", "running", "pending", "failed", "lost", "submitted", "missing")


def status(run: RunDir, verify: bool = False) -> dict[str, Any]:
    """What became of each task of each method of the run, and damage.

    A task is `done` by what is on disk. Otherwise the scheduler says whether it is `running` or
    `pending` and why, or how it `failed`; it is `lost` where the scheduler took it and knows it no
    more, and `submitted` where the scheduler, whose silence is in `scheduler`, does not answer. A
    task that nothing was heard of is `missing`.
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


def print_status(run_dir: Path, as_json: bool, verify: bool) -> bool:
    """Print `status` as tables or as JSON; true if a file is damaged."""
    found = status(RunDir(run_dir), verify)
    if as_json:
        print(json.dumps(found, indent=1))
        return bool(found["damaged"])
    output = Console()
    if not found["methods"]:
        print(f"{found['run']} has no method's results, nor their config.")
    for method in found["methods"]:
        _print_method(output, found["run"], method)
    if found["scheduler"]:
        print(f"Jobs are shown as far as the disk tells: {found['scheduler']}")
    for words in found["damaged"] or ():
        output.print(words, markup=False, soft_wrap=True)
    return bool(found["damaged"])


def _print_method(output: Console, run: str, method: dict[str, Any]) -> None:
    """Counts by stage, then the tasks of each job that are alike in one line."""
    states = [s for s in STATES if any(counts[s] for counts in method["stages"].values())]
    table = Table(title=escape(f"{run}: {method['name']}"))
    for heading in ("stage", "tasks", *states):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage, counts in method["stages"].items():
        table.add_row(stage, *(str(counts[key] or "") for key in ("tasks", *states)))
    output.print(table)
    needs, waiting = Counter[str](), Counter[tuple[str, str]]()
    for task in method["tasks"]:
        if (task["reason"] or "").startswith(NEEDS):
            needs[task["reason"]] += 1
        elif task["state"] == "pending":
            waiting[task["job"].partition("_")[0], task["reason"]] += 1
        elif task["state"] in ("running", "failed", "lost"):
            job = f" (job {task['job']})" if task["job"] else ""
            said = f": {task['reason']}" if task["reason"] else ""
            output.print(f"{task['id']} {task['state']}{job}{said}", markup=False, soft_wrap=True)
            if task["log"]:
                output.print(f"  log: {task['log']}", markup=False, soft_wrap=True)
    for reason, number in needs.items():
        output.print(f"{number} more {reason}", markup=False, soft_wrap=True)
    for (job, reason), count in waiting.items():
        plural = "s" if count > 1 else ""
        output.print(f"job {job}: {count} task{plural} pending ({reason or 'no reason given'})")


def _damage(run: RunDir, config: Config) -> Iterator[str]:
    """A sentence on each file that cannot be read back as it was written."""
    from skerch import hdf5  # imports torch, as the next do; the rest of `status` needs none
    from skerch.jobs import recorded
    from skerch.jobs.config import load_resolved
    from skerch.measurements.array import MeasurementArray

    def check(path: Path, read: Callable[[], object]) -> Iterator[str]:
        if path.exists():
            try:
                read()
            except SkerchError as error:
                yield str(error)

    def check_bound(path: Path, directory: StepDir) -> None:
        with hdf5.open_for_reading(path) as file:
            hashes = hdf5.attribute(file, "manifests").split()
        if not directory.measured(hashes):
            raise SkerchError(
                f"{path} is of other measurements than are there now; delete it and run again."
            )

    def check_array(directory: Path) -> Iterator[str]:
        try:
            array = MeasurementArray(directory)
        except SkerchError as error:
            yield str(error)
            return
        for block in array.manifest.blocks():
            yield from check(array.path(block.index), partial(array.open, block))

    yield from check(run.training_config, partial(load_resolved, run.training_config))
    yield from check(run.checkpoint, partial(recorded.load_checkpoint, run.checkpoint))
    if run.parameters.exists():  # they have the hashes of the other files
        yield from check(run.log, partial(recorded.check_log, run))
        for split in config.hessian.splits:
            yield from check(run.hessian_data, partial(recorded.load_hessian_data, run, split))
    for task in pipeline.tasks(config):
        for path in task.outputs:
            if path.suffix == ".h5":
                yield from check(path, partial(hdf5.verify, path))
            elif path.name == "manifest.json" and path.exists():
                yield from check_array(path.parent)
            elif path.name == "overlap.json":
                yield from check(path, partial(overlap_file.read, path))
        if task.stage in ("range_finder", "merge", "decompose"):
            directory = run.step(**{key: task.arguments[key] for key in ("name", "step", "split")})
            (path,) = task.outputs
            yield from check(path, partial(check_bound, path, directory))


def _method(run: RunDir, config: Config, known: Submitted, silence: str | None) -> dict[str, Any]:
    tasks = pipeline.tasks(config)
    missing = {task.id for task in pipeline.missing(tasks)}
    found: list[dict[str, Any]] = []
    bad: dict[str, str] = {}  # tasks that will not be done as things are, and the first cause
    for task in tasks:
        entry = _task(run, task, task.id in missing, known, silence)
        cause = next((bad[need] for need in task.needs if need in bad), None)
        if entry["state"] in ("failed", "lost") or (cause and entry["state"] != "done"):
            bad[task.id] = cause or task.id
        untried = entry["state"] == "pending" or (
            entry["state"] in ("failed", "lost") and entry["exit_code"] in (None, "0:0")
        )
        if cause and untried:
            entry["reason"] = f"{NEEDS} {cause}, which {_outcome(found, cause)}"
        found.append(entry)
    counts = {task.stage: Counter[str]() for task in tasks}
    for entry in found:
        counts[entry["stage"]].update(["tasks", entry["state"]])
    return {
        "name": method_name(config),
        "stages": {
            stage: {key: counter[key] for key in ("tasks", *STATES)}
            for stage, counter in counts.items()
        },
        "tasks": found,
    }


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
    elif slurm.ran_out_of_memory(element, attempt):
        state, reason = "failed", "out of memory"
    elif element is not None and element.state != "COMPLETED":
        state, reason = "failed", error or (element.reason if element.stuck else element.state)
    elif error:
        state, reason = "failed", error
    elif submission and silence:
        state = "submitted"
    elif submission:
        state, reason = "lost", "the scheduler knows it no more, and it left no result"
        if element is not None:
            reason = "it ended well, but its result is not to be seen here"
    lines = [line for line in attempt.splitlines() if line.strip() and not slurm.ECHO.match(line)]
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
