"""Which jobs of a scheduler complete a run, and what each waits for.

A measurement array is one job, an array of its missing tasks (several, where the scheduler takes
no array of that size, or where some ran out of memory and need more); any other task is a job.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from skerch.errors import SkerchError
from skerch.files import sweep
from skerch.jobs import pipeline
from skerch.jobs.config import Config
from skerch.jobs.config.resources import Resources, resources
from skerch.jobs.config.stages import STAGES
from skerch.jobs.launchers.slurm import journal, scheduler, script
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.observed import Submitted, observe
from skerch.jobs.launchers.slurm.scheduler import Element
from skerch.jobs.pipeline import Task, task_log
from skerch.jobs.pipeline.ranges import counted, format_ranges
from skerch.jobs.run_dir import RunDir, command, method_name

ENDING = 20.0  # seconds in which a cancelled job is to leave the queue
ABANDONED = 3600.0  # seconds after which no lost worker of another node still writes a file


class SubmitError(SkerchError):
    """Jobs that cannot be submitted as things are."""


@dataclass(frozen=True)
class Job:
    """Tasks of one stage that are submitted together."""

    tasks: list[Task]
    first: int | None  # the number of the task that an array calls 0; None for a task alone
    memory: int | None  # MiB
    resources: Resources

    def submission(self, run: Path, name: str, after: set[str]) -> Submission:
        """As it is written down before the scheduler is asked."""
        indices = None if self.first is None else tuple(t.arguments["tasks"][0] for t in self.tasks)
        task = self.tasks[0]
        return Submission(
            token=scheduler.new_token(run),
            name=name,
            task=task.array or task.id,
            indices=indices,
            first=self.first or 0,
            after=tuple(sorted(after)),
            asked=self.resources.memory,
            memory=self.memory,
            when=time.time(),
        )


def submit(config: Config) -> None:
    """Submit what a run lacks and no live job is to do; doing it again resumes.

    Raises:
        SubmitError: live jobs are in the way, or a task needs more memory than it may have.
        SlurmError: Slurm is not here, does not answer or refuses.
    """
    from skerch.jobs.launchers.preflight import count_parameters
    from skerch.jobs.run_dir.binding import bind, locked  # imports torch

    run = RunDir(config.run_dir)
    script.check_path(run.path)
    wanted = resources(config)
    if pipeline.missing(pipeline.tasks(config)):
        count_parameters(config, here=False)
    if names := scheduler.overruled():
        print(
            f"{', '.join(names)} of your shell {'has' if len(names) == 1 else 'have'} no say: what "
            "jobs ask for stands in the cluster file and in resources.",
            file=sys.stderr,
        )
    with locked(run) as lock:
        known = observe(run, scheduler.PATIENCE, unasked=True)
        _check_live(run, config, known)
        jobs, stuck, ids = _missing_jobs(run, config, known, wanted)
        bind(run, config)
        sweep(run.path, age=None if known.live else ABANDONED)
        with suppress(scheduler.SlurmError):  # those that have ended meanwhile
            scheduler.cancel(stuck)
        run.logs.mkdir(parents=True, exist_ok=True)
        for count, job in enumerate(jobs):
            submission = job.submission(run.path, method_name(config), _after(job, ids))
            text = _script(run, job, submission)
            journal.record(run, submission)
            try:
                submission = replace(
                    submission, job=scheduler.submit(text, lock, run.path, submission)
                )
            except scheduler.SlurmError as error:
                raise SubmitError(
                    f"{error} {count} of {len(jobs)} jobs are submitted; mend the cause (a limit "
                    "on jobs, by a larger launcher.blocks_per_task), then submit again; without "
                    f"Slurm: {command('run', run.path)}."
                ) from error
            journal.record(run, submission)
            ids |= dict.fromkeys(submission.elements, str(submission.job))
            print(_line(submission), flush=True)
    if not jobs and not ids:
        print(f"All tasks are done in {run.path}; see: {command('results', run.path)}")
        return
    count, live = sum(len(job.tasks) for job in jobs), len(known.live)
    print(
        f"{counted(count, 'task')} {'is' if count == 1 else 'are'} submitted in "
        f"{counted(len(jobs), 'job')}, and {live} {'was' if live == 1 else 'were'} live; see: "
        f"{command('status', run.path)}"
    )


def cancel(run: RunDir) -> None:
    """Cancel the live jobs of a run, and see that they end.

    Raises:
        SubmitError: some still wait or run.
        SlurmError: Slurm is not here, or does not answer.
    """
    waiting = _waiting(run)
    jobs = sorted({element.job.partition("_")[0] for element in waiting}, key=int)
    if not jobs:
        print(f"No job of {run.path} is live.")
        return
    refusal = ""
    try:
        scheduler.cancel(jobs)
    except scheduler.SlurmError as error:  # as it says of those that have ended meanwhile, too
        refusal = f" {error}"
    end = time.monotonic() + ENDING
    while left := _waiting(run):
        if time.monotonic() > end:
            which = format_ranges(sorted({int(e.job.partition("_")[0]) for e in left}))
            raise SubmitError(
                f"{counted(len(left), 'task')} of {counted(len(waiting), 'task')} still "
                f"{'lives' if len(left) == 1 else 'live'}, in jobs {which} "
                f"({', '.join(sorted({e.state for e in left}))}): scancel did not end them."
                f"{refusal} Try again, or see: {command('status', run.path)}"
            )
        time.sleep(0.5)
    print(
        f"{counted(len(waiting), 'task')} in {'jobs' if len(jobs) > 1 else 'job'} "
        f"{format_ranges(map(int, jobs))} {'are' if len(waiting) > 1 else 'is'} cancelled; "
        f"to go on: {command('submit', run.path)}"
    )


def _waiting(run: RunDir) -> list[Element]:
    """What waits or runs of a run's jobs; not what is being ended."""
    known = observe(run, scheduler.PATIENCE, unasked=True)
    return [e for e in known.elements.values() if not e.ended and e.state != "COMPLETING"]


def dry_run(config: Config) -> None:
    """Print the scripts that `submit` would give to the scheduler, and change nothing.

    The ids of jobs to come are shown as `JOB1`, `JOB2`, … in the order of submission. Raises as
    `submit` does.
    """
    from skerch.jobs.run_dir.binding import check_bound  # imports torch

    run = RunDir(config.run_dir)
    script.check_path(run.path)
    known = observe(run, scheduler.PATIENCE)
    _check_live(run, config, known)
    check_bound(run, config)
    jobs, _, ids = _missing_jobs(run, config, known, resources(config))
    for number, job in enumerate(jobs, start=1):
        submission = job.submission(run.path, method_name(config), _after(job, ids))
        submission = replace(submission, job=f"JOB{number}")
        ids |= dict.fromkeys(submission.elements, str(submission.job))
        print(f"# {_line(submission)}\n{_script(run, job, submission)}")
    if not jobs:
        print(f"There is nothing to submit: {counted(len(ids), 'live task')}, and the others done.")


def _check_live(run: RunDir, config: Config, known: Submitted) -> None:
    """Refuse to change what live tasks mean, and to go on where it is not known what lives."""
    if known.strangers:
        raise SubmitError(
            f"{run.jobs} was damaged or removed: it does not tell of live jobs of this run, "
            f"{', '.join(known.strangers)}. Cancel them, then submit again: "
            f"{command('cancel', run.path)}."
        )
    training, name = known.live.get("train"), method_name(config)
    if training is not None:
        asked, whole = (pipeline.tasks(c)[0].records for c in (config, run.grown(run.load())))
        if not set(asked) <= set(whole):
            raise SubmitError(
                f"Job {training.job}, which lives, trains without some of training.record_steps="
                f"{config.training.record_steps} or hessian.splits={config.hessian.splits}; wait "
                "until it is done, then submit again."
            )
    arrays = (s for s in known.live.values() if s.indices is not None and s.name == name)
    live = next(arrays, None)
    if live is None or name not in run.methods:
        return
    p = run.load(live.name).launcher.blocks_per_task
    if config.launcher.blocks_per_task != p:
        raise SubmitError(
            f"launcher.blocks_per_task is {config.launcher.blocks_per_task}, and {p} in job "
            f"{live.job}, which lives; take {p}, or cancel it: {command('cancel', run.path)}."
        )


def _missing_jobs(
    run: RunDir, config: Config, known: Submitted, wanted: dict[str, Resources]
) -> tuple[list[Job], list[str], dict[str, str]]:
    """The jobs to submit, the elements to cancel first, and the job ids of live tasks by task id.

    An id ends in `?` where the job may end well no more, as some of its tasks have failed; live
    tasks that wait for such a job never start, and are submitted anew.
    """
    missing = {task.id: task for task in pipeline.missing(pipeline.tasks(config))}
    failed, stuck = _failed(known, missing.keys())
    live = {
        task: f"{s.job}?" if s.job in failed else str(s.job)
        for task, s in known.live.items()
        if known.elements[s.token, s.elements[task]].job not in stuck
    }
    groups: dict[tuple[str, int | None, int | None], list[Task]] = defaultdict(list)
    size = scheduler.array_size() if any(t.array for t in missing.values()) else 1
    for task in missing.values():
        if task.id in live:
            continue
        memory = next_memory(run, task, known, wanted[task.stage])
        first = None
        if task.array is not None:
            first = task.arguments["tasks"][0] // size * size
        groups[task.array or task.id, first, memory].append(task)
    jobs = [
        Job(group, first, memory, wanted[group[0].stage])
        for (_, first, memory), group in groups.items()
    ]
    return jobs, stuck, live


def _failed(known: Submitted, missing: Container[str]) -> tuple[set[str], list[str]]:
    """The jobs of which a task has failed or is lost, and the elements that never start."""
    failed: set[str] = set()
    stuck: list[str] = []
    for s in known.history:  # each after those that it waits for
        never = bool(failed & set(s.after))
        failed.discard(str(s.job))  # an id that another had before Slurm forgot it
        for task, index in s.elements.items():
            element = known.elements.get((s.token, index))
            if element is None:
                ended_well = task not in missing
            elif element.stuck or (never and element.pending):
                stuck.append(element.job)
                ended_well = False
            else:
                ended_well = element.alive or element.state == "COMPLETED"
            if not ended_well:
                failed.add(str(s.job))
    return failed, stuck


def _after(job: Job, ids: dict[str, str]) -> set[str]:
    """The ids of the jobs that a job waits for: live ones, and those submitted before it."""
    return {ids[need] for task in job.tasks for need in task.needs if need in ids}


def next_memory(run: RunDir, task: Task, known: Submitted, wanted: Resources) -> int | None:
    """The memory in MiB for a task: more than last time where it ran out of that.

    Raises SubmitError where that is more than it may have.
    """
    last = known.latest.get(task.id)
    if last is None or last.asked != wanted.memory:
        return wanted.memory
    attempt = task_log.last_attempt(run, task.id, last.when)
    if not scheduler.ran_out_of_memory(known.element(task.id), attempt):
        return last.memory
    key = f"resources.{task.stage}"
    if last.memory is None or wanted.most_memory is None:
        raise SubmitError(f"{task.id} ran out of memory; set {key}.memory, as in {key}.memory=16G.")
    if last.memory >= wanted.most_memory:
        raise SubmitError(
            f"{task.id} ran out of memory with {last.memory} MiB; raise {key}.memory and "
            f"{key}.memory_limit ({wanted.most_memory}M), or take smaller batches or blocks."
        )
    return min(round(last.memory * wanted.memory_factor), wanted.most_memory)


def _script(run: RunDir, job: Job, submission: Submission) -> str:
    log = run.task_log(submission.task)
    resumes = STAGES[job.tasks[0].stage].resumes is not None
    return script.script(submission, job.resources, run.path, log, resumes=resumes)


def _line(submission: Submission) -> str:
    """A submission in one line."""
    tasks = "" if submission.indices is None else f" [{format_ranges(submission.indices)}]"
    jobs = (f"{j[:-1]} (however that ends)" if j[-1] == "?" else j for j in submission.after)
    after = f", after {', '.join(jobs)}" if submission.after else ""
    return f"job {submission.job}: {submission.task}{tasks}{after}"
