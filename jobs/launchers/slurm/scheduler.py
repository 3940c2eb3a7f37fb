"""What Slurm is asked and told about jobs, by sbatch, squeue, sacct, scancel and scontrol.

The scheduler's word is advice. Accounting may be missing (sacct), and squeue forgets a job some
minutes after its end (MinJobAge) or does not answer.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten

from skerch.errors import UsageError
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.programs import (
    PATIENCE,
    WORDS,
    BusyError,
    SlurmError,
    again,
    call,
    call_once,
)
from skerch.jobs.pipeline import task_log

ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
CLUSTER = re.compile(r"^CLUSTER: \S+$", re.MULTILINE)  # before each list of several
JOB_ID = re.compile(
    r"^(?:Submitted batch job )?(\d+)(?:;\S+| on cluster \S+)?\s*$", re.MULTILINE
)  # with and without --parsable
TOKEN = re.compile(r"skerch-[0-9a-f]{8}-[0-9a-f]{16}")  # in a job's comment
STUCK = (
    *("DependencyNeverSatisfied", "JobHoldMaxRequeue", "launch_failed_requeued_held"),
    "user_env_retrieval_failed_requeued_held",
)
OUT_OF_MEMORY = re.compile(
    r"oom.kill|exceeded.*memory limit|out.of.memory|MemoryError|(unable to|can't) allocate",
    re.IGNORECASE,
)
OF_A_DEVICE = re.compile(r"CUDA|HIP")
ECHO = re.compile(  # in a task's log: of srun, and of the shell where srun was killed
    r"srun: (Force Terminated|error: .* Exited with exit code)|\S*/slurm_script: line \d+: +\d+ "
)
# Array job, index in the array, state, reason, nodes; then job name, working directory and comment,
# which may have any characters. All versions know these letters.
FIELDS = "%F|%K|%T|%r|%N|%j|%Z|%k"


@dataclass(frozen=True)
class Element:
    """What the scheduler says of a job, or of one task of an array."""

    job: str  # its id: 12, or 12_3
    state: str  # as squeue names it: PENDING, RUNNING, OUT_OF_MEMORY, …
    reason: str = ""
    node: str = ""
    exit_code: str = ""  # as sacct writes it: the status, a colon, the signal

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.state in ENDED

    @property
    def alive(self) -> bool:
        """Whether it runs or is to run."""
        return not self.ended and not self.stuck

    @property
    def stuck(self) -> bool:
        """Whether it waits and never starts, unless somebody helps."""
        return not self.ended and self.reason.replace(" ", "_") in STUCK

    @property
    def pending(self) -> bool:
        """Whether it waits."""
        return self.alive and self.state in WAITING

    @property
    def outcome(self) -> str:
        """How it ended badly, or why it never starts."""
        if self.stuck or self.state != "FAILED":
            return self.reason if self.stuck else self.state
        status, number = map(int, (self.exit_code or "0:0").split(":"))
        if not number and status > 2:  # which is no exit status of ours; sacct takes 128 off
            number = status % 128
        return task_log.ending(status, number)


Elements = dict[tuple[str, int | None], Element]  # by token and array index


# What is asked of the scheduler.


@dataclass(frozen=True)
class Said:
    """What squeue and sacct say, of one run or of several."""

    queue: list[list[str]] | SlurmError  # as `ask_queue` has it, or why squeue says nothing
    accounted: dict[tuple[str, int | None], Element]  # by job id and array index


def ask(jobs: list[str], patience: float) -> Said:
    """Ask squeue for the user's jobs, and sacct for some by their ids."""
    with ThreadPoolExecutor(1) as pool:
        accounting = pool.submit(_accounted, jobs, patience)
        queue: list[list[str]] | SlurmError
        try:
            queue = ask_queue(patience)
        except SlurmError as error:
            queue = error
        return Said(queue, accounting.result())


def elements(
    run: Path, submissions: list[Submission], patience: float, said: Said | None = None
) -> Elements:
    """What Slurm says of submissions of a run, and of others that it made, as far as it knows them.

    It is asked, unless it has `said` so already.

    Raises SlurmError where squeue does not answer within `patience` seconds, or what it prints is
    not understood, and sacct does not know all of them.
    """
    tokens = {s.token for s in submissions}
    by_job = {s.job: s.token for s in submissions if s.job is not None}
    said = said or ask(list(by_job), patience)
    silence = said.queue if isinstance(said.queue, SlurmError) else None
    queued = {} if isinstance(said.queue, SlurmError) else _queued(run, submissions, said.queue)
    accounted = {
        (by_job[job], index): element
        for (job, index), element in said.accounted.items()
        if job in by_job
    }
    found = {
        key: element
        for key, element in accounted.items()
        if silence or element.ended  # sacct has jobs run for ever that squeue does not know
    }
    found |= _with_exit_codes(queued, accounted, patience)
    if silence and (not tokens or tokens - {token for token, _ in found}):
        raise silence
    return found


def _queued(run: Path, submissions: list[Submission], queue: list[list[str]]) -> Elements:
    """What squeue says of a run: elements of jobs that live, or ended a short time ago.

    A job is known by its id, unless its token is another's (ids begin anew one day), or by its
    token where its id is not known. Some sites take away the comment that the token is in; then by
    name and working directory.
    """
    tokens = {s.token for s in submissions}
    by_job = {s.job: s.token for s in submissions if s.job is not None}
    by_name = {f"{job_name(run, s.task)}|{run}|": s.token for s in submissions if s.job is None}
    found: Elements = {}
    for job, index, state, reason, node, rest in queue:
        named = TOKEN.search(rest)
        token = named[0] if named else by_job.get(job, "")
        if not token:
            token = next((t for name, t in by_name.items() if rest.startswith(name)), "")
        if token in tokens or token.startswith(_mark(run)):
            number = int(index) if index.isdecimal() else None
            name = job if number is None else f"{job}_{number}"
            found[token, number] = Element(name, state, _said(reason), _said(node))
    return found


def ask_queue(patience: float) -> list[list[str]]:
    """The user's jobs in all partitions: the first five of FIELDS, and the rest.

    A comment may have line breaks; so each record stands between marks that no comment has. Raises
    SlurmError where there is text outside of the records, or not even their header: an answer that
    is not understood is none.
    """
    mark = uuid.uuid4().hex
    command = ["squeue", "--all", "-r", "-t", "all", "-u", str(os.getuid())]
    done = call([*command, "-o", f"{mark}|{FIELDS}|{mark}"], patience=patience)
    record = re.compile(rf"^{mark}\|(.*?)\|{mark}\s*?$", re.MULTILINE | re.DOTALL)
    listed = [found.split("|", 5) for found in record.findall(done.stdout)]
    jobs = [fields for fields in listed if fields != listed[0]]  # each cluster has a header
    rest = done.stdout[done.stdout.find(mark) :] if listed else done.stdout
    outside = CLUSTER.sub("", record.sub("", rest)).strip()
    single = re.compile(r"\d+\|(\d+|N/A)\|")  # not several of an array in one record
    readable = all(len(fields) == 6 and single.match("|".join(fields)) for fields in jobs)
    # squeue (22.05 to 24.11) lists nothing where the user database does not know the user just
    # now; and it leaves out a cluster that has not registered, or that it has not heard of.
    clusters = os.environ.get("SLURM_CLUSTERS", "").count(",") + 1
    some_failed = "Invalid user" in done.stderr or len(listed) - len(jobs) < clusters
    if not listed or outside or not readable or some_failed:
        words = shorten(done.stderr.strip() or rest, WORDS)
        raise SlurmError(
            f"squeue printed what is no list of jobs ({words}), so that it is not known which "
            "live; see what squeue prints."
        )
    return jobs


def _with_exit_codes(queued: Elements, accounted: Elements, patience: float) -> Elements:
    """The elements with exit codes where they have ended; squeue is asked apart for those."""
    ended = {key: element for key, element in queued.items() if element.ended}
    codes = {key: "0:0" for key, element in ended.items() if element.state == "COMPLETED"}
    codes |= {key: accounted[key].exit_code for key in ended if key in accounted}
    if unknown := ended.keys() - codes.keys():
        jobs = sorted({ended[key].job.partition("_")[0] for key in unknown})
        command = ["squeue", "--all", "-h", "-r", "-t", "all", "-j", ",".join(jobs)]
        with suppress(SlurmError):
            form = "ArrayJobID:20,ArrayTaskID:20,exit_code:20"
            text = call([*command, "-O", form], patience=patience).stdout
            rows = [row for row in map(str.split, text.splitlines()) if len(row) == 3]
            said = {job if i == "N/A" else f"{job}_{i}": _exit_code(code) for job, i, code in rows}
            codes |= {key: said.get(ended[key].job, "") for key in unknown}
    return queued | {key: replace(e, exit_code=codes.get(key, "")) for key, e in ended.items()}


def _accounted(jobs: list[str], patience: float) -> dict[tuple[str, int | None], Element]:
    """What sacct says of jobs, by id and index; nothing where there is no accounting."""
    found = {}
    for line in accounts(jobs, "JobID,State,NodeList,ExitCode", patience, "-X"):
        name, state, node, code = (line + [""] * 3)[:4]
        job, array, indices = name.partition("_")
        if job not in jobs or not state:
            continue
        for index in _numbers(indices) if array else [None]:
            if indices.isdecimal() or (job, index) not in found:  # [0-3] may have begun in part
                id = job if index is None else f"{job}_{index}"
                found[job, index] = Element(id, state.split()[0], "", _said(node), code)
    return found


def _numbers(indices: str) -> list[int]:
    """The numbers of 3, or of [0-3,5,10-20:2,...%4], as far as they are listed."""
    spans = re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", indices.partition("%")[0])
    return [n for a, b, step in spans for n in range(int(a), int(b or a) + 1, int(step or 1))]


def known(jobs: str | None) -> set[str]:
    """The ids in a list of the user's jobs, as 12,13_4,14?.

    Raises UsageError for one of no job (an empty list is such a one: a variable that was to have an
    id), and for one that is to end well and cannot.
    """
    ids = set() if jobs is None else set(jobs.split(","))
    queued = ask_queue(PATIENCE) if ids else []
    for id in sorted(ids):
        number = re.fullmatch(r"(\d+)(?:_(\d+))?\??", id)
        found = [
            Element(id, state, _said(reason))
            for job, index, state, reason, *_ in queued
            if number and job == number[1] and number[2] in (None, index)
        ]
        if not found:
            raise UsageError(
                f"--after {id or repr(jobs)}: squeue shows no such job of yours. If it has ended "
                "well, leave it out; an id is 12 or, of an array's task, 12_3; 12? waits however "
                "12 ends."
            )
        ends = {e.reason if e.stuck else e.state for e in found if not e.alive} - {"COMPLETED"}
        if ends and not id.endswith("?"):
            raise UsageError(
                f"--after {id}: job {id} does not end well ({', '.join(sorted(ends))}), so that "
                f"nothing would ever begin after it; leave it out, or give another or {id}?, which "
                "waits however it ends."
            )
    return ids


def accounts(jobs: list[str], form: str, patience: float, *options: str) -> list[list[str]]:
    """What sacct says of jobs, a list of fields a line; nothing where there is no accounting."""
    command = ["sacct", "-n", "-P", *options, "-u", str(os.getuid())]
    if clusters := os.environ.get("SLURM_CLUSTERS"):  # which sacct, alone of all, does not read
        command += ["-M", clusters]
    with suppress(SlurmError):
        if jobs:
            said = call([*command, "-o", form, "-j", ",".join(jobs)], patience=patience)
            return [line.split("|") for line in said.stdout.splitlines()]
    return []


def array_size() -> int:
    """How many tasks an array is given: the largest power of ten up to MaxArraySize.

    A power of ten, as then a log's name ends in the task's number: Slurm pads the array index.
    """
    try:
        text = call(["scontrol", "show", "config"], patience=PATIENCE).stdout
    except SlurmError:
        text = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    most = int(found[1]) if found else 1001
    return int(10 ** (len(str(most)) - 1))


def time_limit(job: str) -> float:
    """The seconds that a job, or an element of an array, may run; infinity without a limit."""
    said = call(["squeue", "--all", "-h", "-j", job, "-o", "%l"], patience=PATIENCE).stdout
    found = re.search(r"^(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)$", said, re.MULTILINE)
    if not found:
        return math.inf
    days, hours, minutes, seconds = (int(number or 0) for number in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def ran_out_of_memory(element: Element | None, log: str) -> bool:
    """Whether a task that ended did so for lack of memory, by the scheduler or its log."""
    return (element is not None and element.state == "OUT_OF_MEMORY") or any(
        OUT_OF_MEMORY.search(line) and not OF_A_DEVICE.search(line) for line in log.splitlines()
    )


# What is told to it.


def new_token(run: Path) -> str:
    """What a job is known by before it has an id; it tells the run, too."""
    return _mark(run) + uuid.uuid4().hex[:16]


def _mark(run: Path) -> str:
    return f"skerch-{hashlib.sha256(os.fsencode(run)).hexdigest()[:8]}-"


def job_name(run: Path, task: str) -> str:
    """The name of a task's job, in characters that any Slurm takes."""
    return re.sub(r"[^\w.-]+", "-", f"{run.name}.{task}")


def submit(text: str, lock: int, run: Path, submission: Submission) -> str:
    """Give a script to sbatch; its job id.

    sbatch holds the lock too, as it may submit when who called it is killed already. Where it does
    not answer in time, or prints no id, squeue tells whether the job is there; where Slurm is busy
    and it is not, it is given again.

    Raises:
        FullError: there are as many jobs as there may be.
        BusyError: Slurm was busy for too long.
        SlurmError: it refuses.
    """
    for _ in again():
        try:
            said = call_once(["sbatch", "--parsable"], PATIENCE, text, keep=(lock,)).stdout
        except BusyError as error:
            busy = error
            with suppress(BusyError):
                if job := _find(run, submission):
                    return job
            continue
        ids = set(JOB_ID.findall(said))
        job = ids.pop() if len(ids) == 1 else _find(run, submission)
        if job is None:
            raise SlurmError(f"sbatch printed no job id, but: {shorten(said, WORDS)}.")
        return job
    raise BusyError(f"{busy} Whether it has the job is not known; squeue does not show it.")


def depend(job: str, on: Sequence[str]) -> None:
    """Let a job that waits begin after the end of others, however that is."""
    change = f"Dependency=afterany:{':'.join(on)}"
    call(["scontrol", "update", f"JobId={job}", change], patience=PATIENCE)


def _find(run: Path, submission: Submission) -> str | None:
    """The id of a job whose submission was not answered, if squeue shows it in some seconds."""
    for _ in range(10):
        for (token, _), element in _queued(run, [submission], ask_queue(PATIENCE)).items():
            if token == submission.token:
                return element.job.partition("_")[0]
        time.sleep(1.0)
    return None


def requeue(job: str) -> None:
    """Ask that a job, or an element of an array, is queued again."""
    call(["scontrol", "requeue", job], patience=PATIENCE)


def cancel(jobs: list[str]) -> None:
    """Cancel jobs, or elements of arrays, by id."""
    for start in range(0, len(jobs), 500):
        call(["scancel", *jobs[start : start + 500]], patience=PATIENCE)


def _said(words: str) -> str:
    return "" if words in ("None", "(null)", "None assigned") else words


def _exit_code(status: str) -> str:
    """A wait status, as squeue gives it, in the form of sacct: the exit status, and the signal."""
    if ":" in status:
        return status
    number = int(status) if status.isdecimal() else 0
    return f"{number >> 8}:{number & 127}"
