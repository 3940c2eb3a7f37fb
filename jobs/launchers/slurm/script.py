"""What is told to Slurm: the script of a job.

Scripts are written by submitit, which runs the program under srun, so that the signal before a
time limit reaches Python. Its pickles are not used: the run directory says what a task is, and a
process that is killed between sbatch and the renaming of a pickle leaves an array that cannot run.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from submitit import SlurmExecutor
from submitit.core.utils import JobPaths

from skerch.jobs.config.resources import Resources
from skerch.jobs.launchers.slurm.inside import STARTED
from skerch.jobs.launchers.slurm.jobs import healing_id
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.programs import SlurmError
from skerch.jobs.launchers.slurm.scheduler import job_name
from skerch.jobs.pipeline.ranges import format_ranges

JOB = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"  # 12_3
START = f'echo "$(date -u +%FT%T+00:00) job {JOB} starts on $(hostname)"'
CLOCK = f"export {STARTED}=$(date +%s)"
CROWD = 100  # elements of an array that may run at once without being staggered
KEEP = "export SLURM_EXPORT_ENV=ALL"  # srun passes on what `setup` sets, also after --export=NONE


def script(
    submission: Submission, resources: Resources, run: Path, log: Path, before: Sequence[Path] = ()
) -> str:
    """The script of a job, whose log is `log`; an array's tasks have `.<t>` before its suffix.

    A task is one process, whatever the node has, and one srun with a log of its own: those `before`
    are of `submission.before`. The first that fails ends the job.

    `submission.after` becomes `afterok` (for ids that end in `?`, `afterany`).
    """
    output, in_array = _escaped(log), submission.indices is not None

    def program(task: str) -> list[str]:
        command = [sys.executable, "-u", "-m", "skerch.jobs.launchers.slurm.task", str(run), task]
        command += ["--name", submission.name, "--requeues", str(resources.requeues)]
        return [*command, "--grace", str(resources.grace or 0)]

    command = program(submission.task)
    if submission.task == healing_id(submission.name):
        command = [sys.executable, "-u", "-m", "skerch.jobs.launchers.slurm.heal", str(run)]
        command += ["--name", submission.name]
    options = {
        "comment": submission.token,
        "chdir": str(run),
        "requeue": True,
        "open-mode": "append",
        "ntasks": 1,
    }
    wait = []
    if submission.indices is not None:
        numbers = [index - submission.first for index in submission.indices]
        limit = f"%{resources.throttle}" if resources.throttle else ""
        at_once = resources.throttle or numbers[-1] + 1
        if min(at_once, len(numbers)) > CROWD:  # ten a second, by index
            late = f"[ $SLURM_ARRAY_TASK_ID -ge {at_once} ]"
            wait = [f"{late} || sleep $((SLURM_ARRAY_TASK_ID / 10 % 60))"]
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
    options["output"] = _escaped(before[0]) if before and not in_array else output
    cores = [f"--cpus-per-task={resources.cpus}"] if resources.cpus else []  # srun takes one else
    alone = ["--nodes=1", "--ntasks=1"]  # on a whole node srun starts as many as there is room for
    further = ["--open-mode", "append", *cores, *alone, *resources.srun]
    first = [
        shlex.join(["srun", "--unbuffered", "--output", _escaped(path), *further, *program(task)])
        + (" --shared" if in_array else "")
        + f" >>{shlex.quote(str(path))} 2>&1 || exit"
        for task, path in zip(submission.before, before, strict=True)
    ]
    told = f" >>{shlex.quote(str(before[0]))}" if before and in_array else ""
    executor = _Executor(folder=run / "slurm")
    executor.update_parameters(
        job_name=job_name(run, submission.task),
        **_parameters(submission, resources),
        setup=[START, *wait, KEEP, *[CLOCK] * bool(first), *checked_setup(resources, told), *first],
        additional_parameters=options | resources.sbatch,
        srun_args=["--output", output, *further],
    )
    return executor.text(shlex.join(command))


def check_path(run: Path) -> None:
    """Refuse a run directory that Slurm cannot name a log in."""
    if re.search(r"[\\\n\r]", str(run)):
        raise SlurmError(
            f"run_dir={str(run)!r} has a backslash or a line break, with which Slurm cannot name a "
            "log; choose another."
        )


class _Executor(SlurmExecutor):
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
    values: dict[str, object] = {
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": resources.exclude,
        "gpus_per_node": resources.gpus,
        "cpus_per_task": resources.cpus,
        "mem": submission.memory and f"{submission.memory}M",
        "time": resources.time if submission.time in (None, resources.minutes) else submission.time,
        "mail_type": resources.mail_type,
        "mail_user": resources.mail_user,
    }
    return values | {"signal_delay_s": resources.grace, "stderr_to_stdout": True, "wckey": None}


def checked_setup(resources: Resources, told: str = "") -> Iterator[str]:
    """The lines of `setup`: one that fails ends the job, with a sentence."""
    if resources.setup:
        words = "error: the setup line '$2' ended with status $1; mend it, or end it in || true"
        yield f'checked() {{ [ "$1" = 0 ] || {{ echo "{words}"{told}; exit "$1"; }}; }}'
    for line in resources.setup:
        yield line
        if not line.endswith("\\"):  # it goes on in the next one
            yield f"checked $? {shlex.quote(line)}"


def _escaped(log: Path) -> str:
    """A log's path, as Slurm takes it."""
    return str(log).replace("%", "%%")


def _padded(first: int) -> str:
    """A pattern that names task `first + index` of an array for each index below `array_size`."""
    if not first:
        return "%a"
    digits = len(str(first)) - len(str(first).rstrip("0"))
    return str(first)[:-digits] + f"%{digits}a"
