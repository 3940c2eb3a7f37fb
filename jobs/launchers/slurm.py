"""Slurm: the one file that knows the words sbatch, squeue, sacct, scancel and scontrol.

Scripts are written by submitit, which runs the program under srun, so that the signal before a
time limit reaches Python. Its pickles are not used: the run directory says what a task is, and a
process that is killed between sbatch and the renaming of a pickle leaves an array that cannot run.

The scheduler's word is advice. Accounting may be missing (sacct), and squeue forgets a job some
minutes after its end (MinJobAge) or does not answer.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from submitit import SlurmExecutor
from submitit.core.utils import JobPaths

from skerch.errors import SkerchError
from skerch.jobs import task_log
from skerch.jobs.cluster import Resources
from skerch.jobs.journal import Submission
from skerch.jobs.ranges import format_ranges

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
JOB = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"  # 12_3
START = f'echo "$(date -u +%FT%T+00:00) job {JOB} starts on $(hostname)"'
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


def script(
    submission: Submission, resources: Resources, run: Path, log: Path, *, resumes: bool
) -> str:
    """The script of a job, whose log is `log`; an array's tasks have `.<t>` before its suffix.

    A task that `resumes` where it was is requeued at its time limit.

    `submission.after` becomes `afterok` (for ids that end in `?`, `afterany`).
    """
    output = str(log).replace("%", "%%")
    command = [sys.executable, "-u", "-m", "skerch.jobs.task", str(run), submission.task]
    command += ["--name", submission.name, "--requeues", str(resources.requeues if resumes else 0)]
    options = {
        "comment": submission.token,
        "chdir": str(run),
        "requeue": True,
        "open-mode": "append",
    }
    if submission.indices is not None:
        numbers = [index - submission.first for index in submission.indices]
        limit = f"%{resources.throttle}" if resources.throttle else ""
        options["array"] = format_ranges(numbers) + limit
        command += ["--first", str(submission.first)]
        output = output.removesuffix(".log") + f".{_padded(submission.first)}.log"
    if submission.after:
        kinds = {False: "afterok", True: "afterany"}
        options["dependency"] = ",".join(
            f"{word}:{':'.join(ids)}"
            for lenient, word in kinds.items()
            if (ids := [i.rstrip("?") for i in submission.after if i.endswith("?") == lenient])
        )
        options["kill-on-invalid-dep"] = "yes"
    options["output"] = output
    cores = [f"--cpus-per-task={resources.cpus}"] if resources.cpus else []  # srun takes one else
    executor = _Executor(folder=run / "slurm")
    executor.update_parameters(
        job_name=re.sub(r"[^\w.-]+", "-", f"{run.name}.{submission.task}"),
        **_parameters(submission, resources),
        additional_parameters=options | resources.sbatch,
        srun_args=["--output", output, "--open-mode", "append", *cores, *resources.srun],
    )
    return executor.text(shlex.join(command))


def new_token(run: Path) -> str:
    """What a job is known by before it has an id; it tells the run, too."""
    return _mark(run) + uuid.uuid4().hex[:16]


def _mark(run: Path) -> str:
    return f"skerch-{hashlib.sha256(os.fsencode(run)).hexdigest()[:8]}-"


def check_path(run: Path) -> None:
    """Refuse a run directory that Slurm cannot name a log in."""
    if re.search(r"[\\\n\r]", str(run)):
        raise SlurmError(
            f"run_dir={str(run)!r} has a backslash or a line break, with which Slurm cannot name a "
            "log; choose another."
        )


def submit(text: str, lock: int) -> str:
    """Give a script to sbatch; its job id.

    sbatch holds the lock too, as it may submit when who called it is killed already.
    """
    command = ["sbatch", "--parsable"]
    return _slurm(command, patience=PATIENCE, text=text, keep=(lock,)).split(";")[0]


def cancel(jobs: list[str]) -> None:
    """Cancel jobs, or elements of arrays, by id."""
    for start in range(0, len(jobs), 500):
        _slurm(["scancel", *jobs[start : start + 500]], patience=PATIENCE)


def requeue_at_time_limit(requeues: int, say: Callable[[str], None]) -> None:
    """Within a job: ask to be requeued at the signal before the time limit, some times at most."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # one element has the id of the array, which is all
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{array_index()}"
    count = int(os.environ.get("SLURM_RESTART_COUNT", 0))

    def requeue(*_: object) -> None:
        if count >= requeues:
            say(f"The time limit is near, and this job was requeued {count} times: no more.")
            return
        say(f"The time limit is near: requeued for the {count + 1}. of {requeues} times.")
        try:
            _slurm(["scontrol", "requeue", job], patience=PATIENCE)
        except SlurmError as error:
            say(f"{error} It goes on until it is killed; submit again then.")

    signal.signal(signal.SIGUSR2, requeue)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


def array_index() -> int:
    """Within a job: its index in the array."""
    index = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    if not index.isdecimal():
        raise SlurmError("SLURM_ARRAY_TASK_ID is not set; leave --first out for a task alone.")
    return int(index)


def cpus() -> int | None:
    """Within a job: the CPUs that it has, as far as Slurm says."""
    number = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(number) if number.isdecimal() else None


class _Executor(SlurmExecutor):  # type: ignore[misc]  # submitit has no types
    """submitit's, for its scripts alone; they can be written where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def text(self, command: str) -> str:
        """The script that runs a command."""
        text = str(self._make_submission_file_text(command, uid="")) + "\n"
        theirs = ["--output", str(JobPaths(self.folder).stdout)]
        return text.replace(f"{shlex.join(theirs)} ", "", 1)  # srun's, of which ours is the second


def _parameters(submission: Submission, resources: Resources) -> dict[str, object]:
    """Resources by submitit's names."""
    values = {
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": resources.exclude,
        "gpus_per_node": resources.gpus,
        "cpus_per_task": resources.cpus,
        "mem": submission.memory and f"{submission.memory}M",
        "time": resources.time,
        "mail_type": resources.mail_type,
        "mail_user": resources.mail_user,
        "setup": [START, *resources.setup],
    }
    return values | {"signal_delay_s": resources.grace, "stderr_to_stdout": True, "wckey": None}


def _padded(first: int) -> str:
    """A pattern that names task `first + index` of an array for each index below `array_size`."""
    if not first:
        return "%a"
    digits = len(str(first)) - len(str(first).rstrip("0"))
    return str(first)[:-digits] + f"%{digits}a"


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
