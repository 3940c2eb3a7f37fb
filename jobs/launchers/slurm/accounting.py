"""What jobs have used, by the scheduler's accounting."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from skerch.jobs.launchers.slurm import scheduler
from skerch.jobs.launchers.slurm.journal import Submission

FORM = "JobID,State,Start,ElapsedRaw,TotalCPU,MaxRSS,TimelimitRaw,AllocTRES"
IN_MIB = {"": 2.0**-20, "K": 2.0**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20}


@dataclass(frozen=True)
class Start:
    """One start of a job, or of an element of an array, that has ended."""

    state: str
    when: float  # seconds since the epoch
    seconds: float
    cpu: float  # seconds of all its processes
    peak: int | None  # MiB, the most of a step, as far as that was sampled
    cpus: int  # that it had
    gpus: int
    memory: int | None  # MiB that it had
    time: int | None  # minutes that it had

    def holds(self, when: float, skew: float) -> bool:
        """Whether something began meanwhile, by a clock that may be off by so many seconds."""
        return self.when - skew <= when <= self.when + self.seconds + skew


def starts(submissions: Sequence[Submission], patience: float) -> dict[str, list[Start]]:
    """The starts of each job of a run, oldest first, by id (12, or 12_3).

    It is one question. Nothing is said where there is no accounting, or no answer in `patience`.
    """
    jobs = [s.job for s in submissions if s.job is not None]
    return parsed(scheduler.accounts(jobs, FORM, patience, "-D"))  # -D: those before a requeue, too


def parsed(lines: Iterable[Sequence[str]]) -> dict[str, list[Start]]:
    """The same of what sacct prints: a line a start, each with lines of its steps after it."""
    found: dict[str, list[Start]] = defaultdict(list)
    for line in lines:
        if len(line) != FORM.count(",") + 1:
            continue
        name, state, when, seconds, cpu, peak, limit, had = line
        job, _, step = name.partition(".")
        if step:
            if found[job] and (most := _mib(peak)):
                found[job][-1] = replace(found[job][-1], peak=max(most, found[job][-1].peak or 0))
            continue
        tres = dict(part.partition("=")[::2] for part in had.split(","))
        began = datetime.fromisoformat(when).timestamp() if when[:1].isdecimal() else 0.0
        found[job].append(
            Start(
                state.partition(" ")[0],
                began,
                float(seconds or 0),
                _seconds(cpu),
                None,
                int(tres.get("cpu", 0)),
                int(tres.get("gres/gpu", 0)),
                _mib(tres.get("mem", "")),
                int(limit) if limit.isdecimal() else None,
            )
        )
    ended = (*scheduler.ENDED, "REQUEUED")
    kept = {job: [s for s in of if s.state in ended and s.cpus] for job, of in found.items()}
    return {job: sorted(of, key=lambda start: start.when) for job, of in kept.items() if of}


def _mib(size: str) -> int | None:
    """A size as sacct writes it; None for what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", size)
    return round(float(found[1]) * IN_MIB[found[2]]) if found else None


def _seconds(time: str) -> float:
    """The seconds of [days-][hours:]minutes:seconds, the last with a fraction."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)", time)
    if not found:
        return 0.0
    days, hours, minutes = (int(part or 0) for part in found.groups()[:3])
    return ((days * 24 + hours) * 60 + minutes) * 60 + float(found[4])
