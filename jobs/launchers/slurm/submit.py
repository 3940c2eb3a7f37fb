"""Give a scheduler the jobs that complete a run, show them, and cancel them."""

from __future__ import annotations

import re
import sys
import time
from contextlib import suppress
from dataclasses import replace

from skerch.files import sweep
from skerch.jobs import pipeline
from skerch.jobs.config import Config
from skerch.jobs.config.resources import resources
from skerch.jobs.launchers.slurm import programs, scheduler, script
from skerch.jobs.launchers.slurm.chain import Chain, job_script, line
from skerch.jobs.launchers.slurm.cost import automatic
from skerch.jobs.launchers.slurm.failures import NONE, failures, needing
from skerch.jobs.launchers.slurm.jobs import (
    after,
    healing_id,
    healing_job,
    last_jobs,
    missing_jobs,
)
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.nodes import bad_nodes, without
from skerch.jobs.launchers.slurm.observed import Submitted, observe
from skerch.jobs.launchers.slurm.raised import SubmitError
from skerch.jobs.launchers.slurm.scheduler import Element
from skerch.jobs.pipeline import blocks
from skerch.jobs.pipeline.ranges import counted, format_ranges
from skerch.jobs.run_dir import RunDir, command, method_name

ENDING = 20.0  # seconds in which a cancelled job is to leave the queue
ABANDONED = 3600.0  # seconds after which no lost worker of another node still writes a file


def submit(config: Config, waits: str | None = None, *, heal: bool = False) -> bool:
    """Submit what a run lacks and no live job is to do; doing it again resumes.

    Its first jobs wait for others of the user's, as in `12,13?`.

    The last job of a chain does so, too (`heal`): without what is hopeless, and after failures
    `launcher.heals` times at most. Returns whether all is done or a live job is to do it.

    Raises:
        UsageError: Slurm does not know a job that is to be waited for.
        SubmitError: live jobs are in the way, a task needs more memory or time than it may have,
            or a job was refused.
        SlurmError: Slurm is not here, does not answer or refuses.
    """
    from skerch.jobs.launchers.preflight import count_parameters
    from skerch.jobs.run_dir.binding import bind, locked  # imports torch

    run = RunDir(config.run_dir)
    script.check_path(run.path)
    first = scheduler.known(waits)
    resources(config)  # refuses what cannot be
    tasks = pipeline.tasks(config)
    if not heal and pipeline.missing(tasks):
        count_parameters(config, here=False)
    if names := programs.overruled():
        print(
            f"{', '.join(names)} of your shell {'has' if len(names) == 1 else 'have'} no say: what "
            "jobs ask for stands in the cluster file and in resources.",
            file=sys.stderr,
        )
    with locked(run) as lock:
        known = observe(run, programs.PATIENCE, unasked=True)
        config = automatic(run, _checked(run, config, known), known)
        tasks, all_nodes = pipeline.tasks(config), resources(config)
        failed = NONE
        if heal:
            failed = failures(run, config.launcher.heals, tasks, known, all_nodes)
        leave = needing(tasks, failed.hopeless)
        bad = bad_nodes(run, tasks, known)
        wanted = without(all_nodes, bad.keys() | failed.died.values())
        jobs, stuck, ids = missing_jobs(run, config, known, wanted, leave)
        bind(run, config)
        sweep(run.path, age=None if known.live else ABANDONED)
        with suppress(programs.SlurmError):  # those that have ended meanwhile
            scheduler.cancel(stuck)
        run.logs.mkdir(parents=True, exist_ok=True)
        for node, why in bad.items() if jobs else ():
            print(f"Node {node} is left out: {why}.")
        for one, *others in failed.alike():
            likewise = f", and {counted(len(others), 'more task')} likewise" if others else ""
            how = one.cause or one.reason or one.state
            print(f"{one.id} failed ({how}){likewise}: submitted again.")
        chain = Chain(run, config, lock, wanted, all_nodes, known, ids, failed)
        chain.submit(jobs, first)
    for words in failed.hopeless.values():
        print(f"{words}.")
    if leave:
        needs = len(leave) - len(failed.hopeless)
        print(f"{counted(needs, 'more task')} {'needs' if needs == 1 else 'need'} one of these.")
    _tell(run, chain, len(known.live.keys() - {healing_id(method_name(config))}))
    return not leave


def _tell(run: RunDir, chain: Chain, live: int) -> None:
    """What was submitted, and what is left to the job at the end of the chain."""
    count, jobs = sum(len(job.everything) for job in chain.submitted), len(chain.submitted)
    left = sum(len(job.everything) for job in chain.left)
    if not (jobs or left or live or chain.failed.hopeless):
        print(f"All tasks are done in {run.path}; see: {command('results', run.path)}")
        return
    told = (
        f"{counted(count, 'task')} {'is' if count == 1 else 'are'} submitted in "
        f"{counted(jobs, 'job')}, and {live} {'was' if live == 1 else 'were'} live"
    )
    if chain.refused or (left and chain.last is None):
        rest = str(left) if left else "the job that ends the chain"
        raise SubmitError(
            f"{chain.refused or chain.full} {told}, and {rest} could not be. Mend the cause, then "
            f"submit again; without Slurm: {command('run', run.path)}."
        )
    if left and chain.last:
        print(f"{chain.full} Job {chain.last.job} submits {counted(left, 'more task')} later.")
    print(f"{told}; see: {command('status', run.path)}")


def cancel(run: RunDir) -> None:
    """Cancel the live jobs of a run, and see that they end.

    Raises:
        SubmitError: some still wait or run.
        SlurmError: Slurm is not here, or does not answer.
    """
    left = _waiting(run)
    count = sum(left.values())
    if not left:
        print(f"No job of {run.path} is live.")
        return
    refusal, cancelled, pause = "", set[str](), 0.5
    end = time.monotonic() + ENDING
    while left:
        jobs = {element.job.partition("_")[0] for element in left} - cancelled
        cancelled |= jobs  # one that was just submitting may have left some more
        try:
            scheduler.cancel(sorted(jobs, key=int))
        except programs.SlurmError as error:  # as it says of those that have ended meanwhile, too
            refusal = f" {error}"
        if time.monotonic() > end:
            which = format_ranges(sorted({int(e.job.partition("_")[0]) for e in left}))
            raise SubmitError(
                f"{counted(sum(left.values()), 'task')} of {counted(count, 'task')} still "
                f"{'lives' if sum(left.values()) == 1 else 'live'}, in jobs {which} "
                f"({', '.join(sorted({e.state for e in left}))}): scancel did not end them."
                f"{refusal} Try again, or see: {command('status', run.path)}"
            )
        time.sleep(pause)
        pause = min(2 * pause, 4.0)
        left = _waiting(run)
    jobs = cancelled
    print(
        f"{counted(count, 'task')} in {'jobs' if len(jobs) > 1 else 'job'} "
        f"{format_ranges(sorted(map(int, jobs)))} {'are' if count > 1 else 'is'} cancelled; "
        f"to go on: {command('submit', run.path)}"
    )


def _waiting(run: RunDir) -> dict[Element, int]:
    """What waits or runs of a run's jobs, and of how many tasks; not what is being ended."""
    known = observe(run, programs.PATIENCE, unasked=True)
    several = {s.token: len(s.parts) for s in known.history if s.parts and s.indices is None}
    return {
        e: several.get(token, 1)
        for (token, _), e in known.elements.items()
        if not e.ended and e.state != "COMPLETING"
    }


def dry_run(config: Config, waits: str | None = None) -> None:
    """Print the scripts that `submit` would give to the scheduler, and change nothing.

    The ids of jobs to come are shown as `JOB1`, `JOB2`, … in the order of submission. Raises as
    `submit` does.
    """
    from skerch.jobs.run_dir.binding import check_bound  # imports torch

    run = RunDir(config.run_dir)
    script.check_path(run.path)
    first = scheduler.known(waits)
    known = observe(run, programs.PATIENCE)
    config = automatic(run, _checked(run, config, known), known)
    check_bound(run, config)
    wanted = resources(config)
    jobs, _, ids = missing_jobs(run, config, known, wanted)
    for number, job in enumerate([*jobs, healing_job(config, wanted)] if jobs else [], start=1):
        needs = after(job, ids) or first
        if number > len(jobs):
            needs = {f"{id.rstrip('?')}?" for id in last_jobs(run.grown(config), ids)}
        submission = job.submission(run.path, method_name(config), needs)
        submission = replace(submission, job=f"JOB{number}")
        ids |= dict.fromkeys(submission.elements, str(submission.job))
        print(f"# {line(submission)}\n{job_script(run, job, submission)}")
    if not jobs:
        print(f"There is nothing to submit: {counted(len(ids), 'live task')}, and the others done.")


def _checked(run: RunDir, config: Config, known: Submitted) -> Config:
    """The config with a number of blocks a task, which live tasks keep.

    Raises SubmitError where what they mean would change, and where it is not known what lives.
    """
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
    live = _measuring(known, name)
    if live is None or name not in run.methods:
        return blocks.numbered(config, queued=True)[0]
    p = run.load(live.name).launcher.blocks
    if config.launcher.blocks_per_task not in ("auto", p):
        raise SubmitError(
            f"launcher.blocks_per_task is {config.launcher.blocks_per_task}, and {p} in job "
            f"{live.job}, which lives; take {p}, or cancel it: {command('cancel', run.path)}."
        )
    return blocks.numbered(config, queued=True, live=True)[0]


def _measuring(known: Submitted, name: str) -> Submission | None:
    """A live job of a method with tasks that follow from the number of their blocks."""
    stages = re.compile(r"\.(rounds|[\w-]+\.\d+)$")
    live = (s for task, s in known.live.items() if s.name == name and stages.search(task))
    return next(live, None)
