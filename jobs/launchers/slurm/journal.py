"""What was submitted to a scheduler: `<run>/slurm/jobs.jsonl`, one JSON object a line.

A submission is written down under a token before the scheduler is asked, and its job id after: who
is killed in between leaves a token that the scheduler knows, too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property

from skerch.files import FileError, cause
from skerch.jobs.pipeline.ranges import format_ranges, parse_ranges
from skerch.jobs.run_dir import RunDir


@dataclass(frozen=True)
class Submission:
    """Tasks that are, or were to be, one job of a scheduler."""

    token: str  # which the scheduler keeps with the job
    name: str  # the method's folder
    task: str  # a task's id; of an array's tasks, what stands before their numbers
    indices: tuple[int, ...] | None  # the tasks' numbers in an array; None for a task alone
    first: int = 0  # the number of the task that the scheduler calls 0
    after: tuple[str, ...] = ()  # ids of the jobs that it waits for
    asked: int | None = None  # MiB, by the config
    memory: int | None = None  # MiB, given: more where it ran out of it before
    asked_time: int | None = None  # minutes, by the config
    time: int | None = None  # minutes, given: more where that was too little before
    cpus: int | None = None
    gpus: int | None = None
    because: dict[str, str] = field(default_factory=dict)  # how tasks failed that are healed
    died: dict[str, str] = field(default_factory=dict)  # and on which node
    # Where an element does several tasks, one after the other, and `task` last: what each must have
    # by itself, as `asked`, `memory`, `asked_time` and `time` are for all.
    parts: dict[str, list[int | None]] = field(default_factory=dict)
    when: float = 0.0  # seconds since the epoch
    job: str | None = None  # its id, unknown where the submitting process was killed

    @property
    def before(self) -> tuple[str, ...]:
        """What each element does first, by task ids."""
        return tuple(self.parts)[:-1]

    @cached_property
    def elements(self) -> dict[str, int | None]:
        """The scheduler's index (None without an array) of each task, by task id.

        What all elements of an array do first has the index of the first one.
        """
        if self.indices is None:
            return dict.fromkeys((*self.before, self.task))
        first = min(self.indices) - self.first
        found: dict[str, int | None] = dict.fromkeys(self.before, first)
        return found | {f"{self.task}.{index}": index - self.first for index in self.indices}

    def places(self, task: str) -> tuple[int | None, ...]:
        """The indices of all elements that do a task, or find it done."""
        if task in self.before:
            return tuple(dict.fromkeys(self.elements.values()))
        return (self.elements[task],)

    def earlier(self, task: str) -> tuple[str, ...]:
        """What an element does before a task of its."""
        before = self.before
        return before[: before.index(task)] if task in before else before

    def own(self, task: str) -> Submission:
        """The submission as it would be of one of its tasks alone, by what that must have."""
        found = self.parts.get(task) or self.parts.get(self.task)
        if not found:
            return self
        asked, memory, asked_time, time = found
        return replace(self, asked=asked, memory=memory, asked_time=asked_time, time=time)

    def job_of(self, task: str) -> str | None:
        """The id that the scheduler has for one of the tasks."""
        index = self.elements[task]
        return self.job if index is None or self.job is None else f"{self.job}_{index}"


def record(run: RunDir, submission: Submission) -> None:
    """Write down a submission that is about to be made, or made, or that waits for other jobs.

    Raises FileError where the operating system refuses, as on a full disk.
    """
    content = asdict(submission)
    if submission.job is not None:
        content = {key: content[key] for key in ("token", "job", "after")}
    elif submission.indices is not None:
        content["indices"] = format_ranges(submission.indices)
    try:
        run.jobs.parent.mkdir(parents=True, exist_ok=True)
        with run.jobs.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(content) + "\n")
    except OSError as error:
        raise FileError(
            f"{run.jobs} cannot be written: {cause(error)}. Make room or give permission there, "
            "then submit again."
        ) from error


def submissions(run: RunDir) -> list[Submission]:
    """All submissions, oldest first."""
    found: dict[str, Submission] = {}
    if not run.jobs.is_file():
        return []
    known = {f.name for f in fields(Submission)}
    for line in run.jobs.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
            token = content["token"]
            if token in found:
                after = tuple(content.get("after", found[token].after))
                found[token] = replace(found[token], job=content["job"], after=after)
                continue
            if content["indices"] is not None:
                content["indices"] = parse_ranges(content["indices"])
            content["after"] = tuple(content["after"])
            found[token] = Submission(**{k: v for k, v in content.items() if k in known})
        except (ValueError, TypeError, KeyError):  # of a process killed while it wrote
            continue
    return list(found.values())
