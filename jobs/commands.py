"""The pipeline's subcommands. Heavy imports happen inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Experiment = Annotated[
    str, typer.Argument(metavar="EXPERIMENT.yaml", help="An experiment file, or a name: digits.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as training.lr=0.1."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def mount(app: typer.Typer) -> None:
    """Add the subcommands to the command line."""
    for command in (run, plan, status, check, exhaustive):
        app.command(command.__name__)(command)


def run(experiment: Experiment, overrides: Overrides = None) -> None:
    """Do every task of an experiment that is missing, here; running again resumes."""
    from skerch.jobs import results
    from skerch.jobs.config import load

    config = load(experiment, overrides or [])
    failures = results.complete(config)
    results.print_table(config)
    if failures:
        raise typer.Exit(1)


def plan(experiment: Experiment, overrides: Overrides = None) -> None:
    """What a run would take: matvecs, tasks, files, disk and memory."""
    from skerch.jobs.config import load
    from skerch.jobs.plan import print_plan

    print_plan(load(experiment, overrides or []))


def status(
    run_dir: RunPath,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all files for damage.")] = False,
) -> None:
    """What is done, missing and failed, stage by stage."""
    from skerch.jobs.status import print_status

    if print_status(run_dir, as_json=json, verify=verify):
        raise typer.Exit(1)


def check(experiment: Experiment, overrides: Overrides = None) -> None:
    """Whether a model is fit for sketching: deterministic, symmetric, finite."""
    from skerch.jobs.check import print_check
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
    from skerch.jobs import results
    from skerch.jobs.config import load
    from skerch.jobs.exhaustive import print_comparison

    config = load(experiment, overrides or [])
    if results.complete(config):
        raise typer.Exit(1)
    print_comparison(config, step, split)
