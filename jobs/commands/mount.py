"""The subcommands and their options. Heavy imports happen inside them."""

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
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run directory, or its experiment file or name.")
]
Runs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RUN]...", help="Run directories or names, or a sweep's folder."),
]


def mount(app: typer.Typer) -> None:
    """Add the subcommands to the command line."""
    for command in (
        init,
        run,
        plan,
        check,
        submit,
        sweep,
        status,
        results,
        report,
        logs,
        cancel,
        doctor,
        exhaustive,
        apply,
        grassmann,
    ):
        app.command(command.__name__)(command)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or an empty one.")],
) -> None:
    """Begin: an experiment, a problem with a model to replace, a cluster file where Slurm is."""
    from skerch.jobs.commands.init import init

    init(folder)


def doctor(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where runs are to be; default: here.")
    ] = Path("."),
    cluster: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="A cluster file to check.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="A cluster file to write.")
    ] = None,
    no_jobs: Annotated[bool, typer.Option("--no-jobs", help="Submit no job to try nodes.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds for which that job may wait.")] = 120.0,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Whether a cluster is fit for skerch: Slurm, files, nodes, Python and MPI."""
    from skerch.jobs.commands.doctor.table import print_doctor

    if not print_doctor(folder, cluster, write, jobs=not no_jobs, wait=wait, as_json=json):
        raise typer.Exit(1)


def run(experiment: Experiment, overrides: Overrides = None) -> None:
    """Do every task of an experiment that is missing, here; running again resumes."""
    from skerch.jobs import launchers
    from skerch.jobs.commands.report import print_report
    from skerch.jobs.commands.results import print_table
    from skerch.jobs.config import load
    from skerch.jobs.launchers.complete import complete
    from skerch.jobs.run_dir import RunDir

    config = load(experiment, overrides or [])
    if launchers.chosen(config.launcher.name) == "srun":  # steps share a few large rounds
        config = load(experiment, overrides or [], queued=True)
    failures = complete(config)
    print_table(config)
    print_report([RunDir(config.run_dir)])
    if failures:
        raise typer.Exit(1)


def submit(
    experiment: Experiment,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the scripts.")] = False,
    after: Annotated[
        str | None, typer.Option(help="Your jobs to wait for: 12,13? (13 however).")
    ] = None,
) -> None:
    """Give every missing task to Slurm, with the resources of cluster=NAME; again resumes."""
    from skerch.jobs.config import load
    from skerch.jobs.launchers.slurm.inside import tell_of_nesting
    from skerch.jobs.launchers.slurm.submit import dry_run as show
    from skerch.jobs.launchers.slurm.submit import submit

    tell_of_nesting(experiment)
    (show if dry_run else submit)(load(experiment, overrides or [], queued=True), after)


def sweep(
    experiment: Experiment,
    overrides: Overrides = None,
    submit: Annotated[bool, typer.Option("--submit", help="Give the runs to Slurm.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell which runs.")] = False,
) -> None:
    """Do or submit a run for each combination of values, as training.lr=[0.1,0.3]."""
    from skerch.jobs.commands.sweep import carry_out, plan, tell

    planned = plan(experiment, overrides or [], submit=submit)
    if dry_run:
        tell(planned)
    elif carry_out(planned, submit=submit):
        raise typer.Exit(1)


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
    from skerch.jobs.commands import side_by_side
    from skerch.jobs.commands.results import print_results
    from skerch.jobs.run_dir import find_run, find_sweep

    if json and csv:
        raise UsageError("--json and --csv are two forms of the same; give one of them.")
    if folder := find_sweep(run_dir):
        side_by_side.print_results(folder, name, json=json, csv=csv)
    else:
        print_results(find_run(run_dir), name, json=json, csv=csv)


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run directories or names.")],
    out: Annotated[Path | None, typer.Option(help="The page; of one run: RUN/report.html.")] = None,
) -> None:
    """Write a page with figures, tables and circumstances of one run, or several side by side."""
    from skerch.jobs.commands.report import write_report
    from skerch.jobs.run_dir import find_runs, find_sweep

    folder = find_sweep(runs[0]) if len(runs) == 1 else None
    page = out.absolute() if out else folder and folder / "report.html"
    print(write_report(find_runs(runs), page))


def cancel(run_dir: Run) -> None:
    """Cancel all live jobs of a run, or of a sweep's; what is finished is kept."""
    from skerch.errors import SkerchError
    from skerch.jobs.launchers.slurm.submit import cancel
    from skerch.jobs.run_dir import find_runs

    refused = None
    for run in find_runs([run_dir]):
        try:
            cancel(run)
        except SkerchError as error:  # the jobs of the other runs are to be cancelled, too
            refused = refused or error
    if refused:
        raise refused


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
    runs: Runs = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all files for damage.")] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit 0: all done, 3: live, 4: stopped before.")
    ] = False,
) -> None:
    """What is done, missing and failed, stage by stage; of several runs in one table."""
    from skerch.jobs.commands.status import exit_status, print_status
    from skerch.jobs.commands.status import status as ask
    from skerch.jobs.run_dir import find_runs, find_sweep

    given = runs or ["."]
    found = ask(find_runs(given), verify)
    print_status(found, as_json=json, several=len(given) > 1 or bool(find_sweep(given[0])))
    if code := exit_status(found, by_tasks=exit_code):
        raise typer.Exit(code)


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


def apply(
    run_dir: Run,
    by: Annotated[str, typer.Option(help="factors, cg, sketch or deflated.")] = "factors",
    name: Annotated[str | None, typer.Option(help="The folder of Kronecker factors.")] = None,
    pairs: Annotated[str | None, typer.Option(help="The folder of eigenpairs.")] = None,
    step: Annotated[int | None, typer.Option(help="A recorded step; default: the last.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the curvature; default: the first.")] = None,
    gradients: Annotated[str, typer.Option(help="mean, each, or a safetensors file.")] = "mean",
    of: Annotated[str | None, typer.Option(help="The split of gradients; default: that.")] = None,
    examples: Annotated[str | None, typer.Option(help="Of each, as in 0-9,12.")] = None,
    damping: Annotated[float, typer.Option(help="Of the system, over the mean eigenvalue.")] = 0.1,
    inverse_damping: Annotated[
        str | None, typer.Option(help="Of factors, likewise; auto: by held-out gradients.")
    ] = None,
    kind: Annotated[str, typer.Option(help="damped, pseudo, tikhonov or factored.")] = "damped",
    rank: Annotated[int | None, typer.Option(help="Compare gradients of so low rank.")] = None,
    tol: Annotated[float | None, typer.Option(help="Of CG's residual; default: 1e-4.")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="With all examples' gradients.")] = False,
    out: Annotated[Path | None, typer.Option(help="The file of products.")] = None,
) -> None:
    """Multiply gradients by the inverse of a damped curvature: by factors, CG or eigenpairs."""
    from skerch.jobs.commands.apply import Asked, print_applied
    from skerch.jobs.run_dir import find_run

    options = {key: value for key, value in locals().items() if key in Asked.__dataclass_fields__}
    print_applied(find_run(run_dir), Asked(**options))


def grassmann(
    dimensions: Annotated[str, typer.Option(help="Numbers N.")] = "100,200,400",
    ratios: Annotated[str, typer.Option(help="Of k/N.")] = "0.02,0.05,0.1,0.2,0.3,0.4,0.5",
    draws: Annotated[int, typer.Option(help="Of each pair of subspaces.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
    out: Annotated[Path | None, typer.Option(help="A folder for the figure and CSV.")] = None,
) -> None:
    """What metrics of subspaces show where these are random, and have nothing in common."""
    from skerch.errors import UsageError
    from skerch.jobs.commands.grassmann import print_study

    if json and csv:
        raise UsageError("--json and --csv are two forms of the same; give one of them.")
    print_study(dimensions, ratios, draws, seed, json=json, csv=csv, out=out)
