"""What tasks write into their logs, whole or as it comes."""

from __future__ import annotations

import time
from collections.abc import Set
from itertools import count
from pathlib import Path

from skerch.jobs import pipeline
from skerch.jobs.commands.status import status
from skerch.jobs.config import ConfigError
from skerch.jobs.run_dir import RunDir

INTERVAL = 1.0  # seconds between two looks at the logs
STATES_EVERY = 10  # looks, at the states of the tasks
OVER = ("done", "failed", "lost")


def print_logs(run: RunDir, part: str = "", *, follow: bool = False) -> None:
    """Print the logs of the tasks whose ids have `part` in them, a task's id before each line.

    A task of that very id is printed alone, as its log is. With `follow` it goes on until
    nothing more comes of any.

    Raises ConfigError where no task has that id.
    """
    tasks = [task for name in run.methods for task in pipeline.tasks(run.grown(run.load(name)))]
    named = {task.id: run.task_log(task.id) for task in tasks if part in task.id}
    if not named:
        raise ConfigError(
            f"{run.path} has no task {part}; give an id that `status --json` has, or a part of it, "
            f"as {', '.join(dict.fromkeys(task.stage for task in tasks)) or 'train'}."
        )
    if part in named:
        named = {part: named[part]}
    read = dict.fromkeys(named, 0)
    for look in count():
        over = not follow or (look % STATES_EVERY == 0 and _over(run, named.keys()))
        for task, path in named.items():
            if path.exists() and path.stat().st_size > read[task]:
                read[task] += _print_from(path, read[task], "" if len(named) == 1 else f"{task}  ")
        if over:
            break
        time.sleep(INTERVAL)
    if not any(read.values()):
        print(f"There is no log yet; it will be {next(iter(named.values()))}.")


def _over(run: RunDir, tasks: Set[str]) -> bool:
    """Whether nothing more comes of these tasks."""
    found = [task for method in status([run])[0].methods for task in method.tasks]
    return all(task.state in OVER or task.needs for task in found if task.id in tasks)


def _print_from(path: Path, start: int, prefix: str) -> int:
    """Print the whole lines of a log from a byte on; how many bytes they are."""
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        print(prefix + line)
    return len(whole)
