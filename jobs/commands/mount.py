"""The subcommands and their options. Heavy imports happen inside them."""

from __future__ import annotations

from typing import Annotated

import typer

Experiment = Annotated[
    str, typer.Argument(metavar="EXPERIMENT.yaml", help="An experiment file, or a name: digits.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as training.lr=0.1."),
]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run directory, or its experiment file or name.")
]


def mount(app: typer.Typer) -> None:
    """Add the subcommands to the command line."""
    for command in (run, plan, check, submit, status, results, logs, cancel, exhaustive):
        app.command(command.__name__)(command)


def run(experiment: Experiment, overrides: Overrides = None) -> None:
    """Do every task of an experiment that is missing, here; running again resumes."""
    from skerch.jobs.commands.results import print_table
    from skerch.jobs.config import load
    from skerch.jobs.launchers.complete import complete

    config = load(experiment, overrides or [])
    failures = complete(config)
    print_table(config)
    if failures:
        raise typer.Exit(1)


def submit(
    experiment: Experiment,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the scripts.")] = False,
) -> None:
    """Give every missing task to Slurm, with the resources of cluster=NAME; again resumes."""
    from skerch.jobs.config import load
    from skerch.jobs.launchers.slurm.submit import dry_run as show
    from skerch.jobs.launchers.slurm.submit import submit

    (show if dry_run else submit)(load(experiment, overrides or [], queued=True))


def logs(
    run_dir: Run,
    task: Annotated[str, typer.Argument(metavar="[TASK]", help="A task's id, or a part.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on to their end.")] = False,
) -> None:
    """The logs of a run's tasks, or of those whose id has TASK in it."""
    from skerch.jobs.commands.logs import print_logs
    from skerch.jobs.run_dir import find_run

    print_logs(find_run(run_dir), task, follow=follow)


def results(
    run_dir: Run,
    name: Annotated[str | None, typer.Option(help="A method's folder; default: all.")] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
) -> None:
    """What is found so far, of each step and split, and what is missing."""
    from skerch.errors import UsageError
    from skerch.jobs.commands.results import print_results
    from skerch.jobs.run_dir import find_run

    if json and csv:
        raise UsageError("--json and --csv are two forms of the same; give one of them.")
    print_results(find_run(run_dir), name, json=json, csv=csv)


def cancel(run_dir: Run) -> None:
    """Cancel all live jobs of a run; what is finished is kept."""
    from skerch.jobs.launchers.slurm.submit import cancel
    from skerch.jobs.run_dir import find_run

    cancel(find_run(run_dir))


def plan(
    experiment: Experiment,
    overrides: Overrides = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure a block here, and tell the time.")
    ] = False,
) -> None:
    """What a run would take: matvecs, tasks, files, disk, memory, and time."""
    from skerch.jobs.commands.plan import print_plan
    from skerch.jobs.config import load

    config = load(experiment, overrides or [])
    if config.cluster is not None:  # as submit has it
        config = load(experiment, overrides or [], queued=True)
    print_plan(config, calibrate)


def status(
    run_dir: Run = ".",
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all files for damage.")] = False,
) -> None:
    """What is done, missing and failed, stage by stage."""
    from skerch.jobs.commands.status import print_status
    from skerch.jobs.run_dir import find_run

    if print_status(find_run(run_dir), as_json=json, verify=verify):
        raise typer.Exit(1)


def check(experiment: Experiment, overrides: Overrides = None) -> None:
    """Whether a model is fit for sketching: deterministic, symmetric, finite."""
    from skerch.jobs.commands.check import print_check
    from skerch.jobs.config import load

    if not print_check(load(experiment, overrides or [])):
        raise typer.Exit(1)


def exhaustive(
    experiment: Experiment,
    overrides: Overrides = None,
    step: Annotated[int | None, typer.Option(help="A recorded step; default: the last.")] = None,
    split: Annotated[str | None, typer.Option(help="Default: the last of hessian.splits.")] = None,
) -> None:
    """Run, then compare the sketched with the exact eigendecomposition, for small networks."""
    from skerch.jobs.commands import exhaustive
    from skerch.jobs.config import load
    from skerch.jobs.launchers.complete import complete

    config = load(experiment, overrides or [])
    context = exhaustive.prepare(config, step, split)
    if complete(config):
        raise typer.Exit(1)
    exhaustive.print_comparison(context)
