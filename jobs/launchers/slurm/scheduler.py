"""What Slurm is asked: the one file that runs sbatch, squeue, sacct, scancel and scontrol.

The scheduler's word is advice. Accounting may be missing (sacct), and squeue forgets a job some
minutes after its end (MinJobAge) or does not answer.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from skerch.errors import SkerchError
from skerch.jobs import task_log
from skerch.jobs.launchers.slurm.journal import Submission

ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
TOKEN = re.compile(r"skerch-[0-9a-f]{8}-[0-9a-f]{16}")  # in a job's comment
STUCK = ("DependencyNeverSatisfied", "launch_failed_requeued_held")
OUT_OF_MEMORY = re.compile(
    r"oom.kill|exceeded.*memory limit|out.of.memory|MemoryError|(unable to|can't) allocate",
    re.IGNORECASE,
)
OF_A_DEVICE = re.compile(r"CUDA|HIP")
ECHO = re.compile(r"srun: (Force Terminated|error: .* Exited with exit code)")  # in a task's log
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
FIELDS = ("ArrayJobID", "ArrayTaskID", "State", "Reason", "NodeList", "exit_code", "Comment")
PATIENCE = 60.0  # seconds that a command may take, where nothing can be done without it


class SlurmError(SkerchError):
    """Slurm that is not here, does not answer or refuses; the message has its words."""


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
        return self.alive and self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

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


def elements(run: Path, submissions: list[Submission], patience: float) -> Elements:
    """What Slurm says of submissions of a run, and of others that it made, as far as it knows them.

    Raises SlurmError where squeue does not answer within `patience` seconds, and sacct does not
    know all of them.
    """
    tokens = {s.token for s in submissions}
    by_job = {s.job: s.token for s in submissions if s.job is not None}
    with ThreadPoolExecutor(1) as pool:
        accounting = pool.submit(_accounted, list(by_job), patience)
        try:
            queued, silence = _queued(run, tokens, by_job, patience), None
        except SlurmError as error:
            queued, silence = {}, error
        found = {
            (by_job[job], index): element
            for (job, index), element in accounting.result().items()
            if silence or element.ended  # sacct has jobs run for ever that squeue does not know
        }
    found |= queued
    if silence and tokens - {token for token, _ in found}:
        raise silence
    return found


def _queued(run: Path, tokens: set[str], by_job: dict[str, str], patience: float) -> Elements:
    """What squeue says: elements of jobs that live, or ended a short time ago.

    A job is known by its id, unless its token is another's (ids begin anew one day), or by its
    token where its id is not known. Some sites take away the comment that the token is in.
    """
    form = ",".join(f"{name}:{60 if name != 'NodeList' else 200}|" for name in FIELDS)
    text = _slurm(
        ["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-O", form], patience=patience
    )
    found: Elements = {}
    for line in text.splitlines():
        values = [value.strip() for value in line.split("|")]
        if len(values) <= len(FIELDS):
            continue  # the rest of somebody's comment of several lines
        job, index, state, reason, node, code, comment = values[: len(FIELDS)]
        named = TOKEN.search(comment)
        token = named[0] if named else by_job.get(job, "")
        if token in tokens or token.startswith(_mark(run)):
            number = int(index) if index.isdecimal() else None
            name = job if number is None else f"{job}_{number}"
            found[token, number] = Element(name, state, _said(reason), node, _exit_code(code))
    return found


def _accounted(jobs: list[str], patience: float) -> dict[tuple[str, int | None], Element]:
    """What sacct says of jobs, by id and index; nothing where there is no accounting."""
    if not jobs:
        return {}
    command = ["sacct", "-n", "-P", "-X", "-o", "JobID,State,NodeList,ExitCode"]
    try:
        text = _slurm([*command, "-j", ",".join(jobs)], patience=patience)
    except SlurmError:
        return {}
    found = {}
    for line in text.splitlines():
        name, state, node, code = (line.split("|") + [""] * 3)[:4]
        job, _, index = name.partition("_")
        if job not in jobs or not state or (index and not index.isdecimal()):
            continue  # tasks that wait are squeue's to tell
        number = int(index) if index else None
        found[job, number] = Element(name, state.split()[0], "", _said(node), code)
    return found


def array_size() -> int:
    """How many tasks an array is given: the largest power of ten up to MaxArraySize.

    A power of ten, as then a log's name ends in the task's number: Slurm pads the array index.
    """
    try:
        text = _slurm(["scontrol", "show", "config"], patience=PATIENCE)
    except SlurmError:
        text = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    most = int(found[1]) if found else 1001
    return 10 ** (len(str(most)) - 1)


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


def submit(text: str, lock: int) -> str:
    """Give a script to sbatch; its job id.

    sbatch holds the lock too, as it may submit when who called it is killed already.
    """
    command = ["sbatch", "--parsable"]
    return _slurm(command, patience=PATIENCE, text=text, keep=(lock,)).split(";")[0]


def requeue(job: str) -> None:
    """Ask that a job, or an element of an array, is queued again."""
    _slurm(["scontrol", "requeue", job], patience=PATIENCE)


def cancel(jobs: list[str]) -> None:
    """Cancel jobs, or elements of arrays, by id."""
    for start in range(0, len(jobs), 500):
        _slurm(["scancel", *jobs[start : start + 500]], patience=PATIENCE)


def _slurm(
    command: list[str], *, patience: float, text: str | None = None, keep: Sequence[int] = ()
) -> str:
    """What a command of Slurm prints; a SlurmError where it fails or does not answer."""
    name = command[0]
    if shutil.which(name) is None:
        raise SlurmError(f"{name} is not on PATH: use a machine from which jobs are submitted.")
    set_here = {line.split("=")[0] for line in (text or "").splitlines()}
    # neither what a surrounding job asked for counts, nor variables that sbatch puts over a script
    environment = {
        key: value
        for key, value in os.environ.items()
        if (not key.startswith("SLURM_") or key in KEPT)
        and f"#SBATCH --{_option(key)}" not in set_here
    }
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=patience,
            env=environment,
            pass_fds=keep,
            stdin=None if text is not None else subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{name} does not answer within {patience:g} s. Try again later."
        ) from None
    except OSError as error:
        raise SlurmError(f"{name} cannot be run: {error}.") from error
    if done.returncode:
        said = re.sub(rf"{name}: (error|fatal): ", "", done.stderr)
        words = "; ".join(line.strip(" .") for line in said.splitlines() if line.strip())
        raise SlurmError(f"{name} failed: {words[:500] or f'exit status {done.returncode}'}.")
    return done.stdout.strip()


def _option(variable: str) -> str:
    """The option of sbatch that an environment variable stands for."""
    name = variable.removeprefix("SBATCH_")
    others = {"TIMELIMIT": "time", "ARRAY_INX": "array", "MEM_PER_NODE": "mem"}
    return others.get(name, name.lower().replace("_", "-"))


def _said(words: str) -> str:
    return "" if words in ("None", "(null)", "None assigned") else words


def _exit_code(status: str) -> str:
    """A wait status, as squeue gives it, in the form of sacct: the exit status, and the signal."""
    number = int(status) if status.isdecimal() else 0
    return f"{number >> 8}:{number & 127}"
