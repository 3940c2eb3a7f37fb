"""What is done, missing and failed in a run directory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from skerch.errors import SkerchError
from skerch.jobs import overlap_file, pipeline, task_log
from skerch.jobs.config import Config
from skerch.jobs.run_dir import RunDir, StepDir, method_name


def status(run: RunDir, verify: bool = False) -> dict[str, Any]:
    """Counts by stage for each method of the run, the failures with their logs, and damage."""
    run.load()
    configs = [run.load(name) for name in run.methods]
    return {
        "run": str(run.path),
        "methods": [_method(run, config) for config in configs],
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
        table = Table(title=escape(f"{found['run']}: {method['name']}"))
        for heading in ("stage", "done", "of", "missing", "failed"):
            table.add_column(heading, justify="left" if heading == "stage" else "right")
        for stage, counts in method["stages"].items():
            numbers = [counts[key] for key in ("done", "tasks", "missing", "failed")]
            table.add_row(stage, *map(str, numbers))
        output.print(table)
        for failure in method["failures"]:
            output.print(f"{failure['id']}: {failure['error']}", markup=False, soft_wrap=True)
            output.print(f"  log: {failure['log']}", markup=False, soft_wrap=True)
    for words in found["damaged"] or ():
        output.print(words, markup=False, soft_wrap=True)
    return bool(found["damaged"])


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


def _method(run: RunDir, config: Config) -> dict[str, Any]:
    tasks = pipeline.tasks(config)
    missing = {task.id for task in pipeline.missing(tasks)}
    records = task_log.records(run)
    failed = [t for t in tasks if t.id in missing and records.get(t.id, {}).get("error")]
    counts = {
        "tasks": Counter(task.stage for task in tasks),
        "missing": Counter(task.stage for task in tasks if task.id in missing),
        "failed": Counter(task.stage for task in failed),
    }
    counts["done"] = counts["tasks"] - counts["missing"]
    return {
        "name": method_name(config),
        "stages": {
            stage: {key: counter[stage] for key, counter in counts.items()}
            for stage in counts["tasks"]
        },
        "failures": [
            {"id": t.id, "error": records[t.id]["error"], "log": str(run.task_log(t.id))}
            for t in failed
        ],
    }
