"""Run what an experiment lacks, here."""

from __future__ import annotations

import sys

from skerch.files import sweep
from skerch.jobs import launchers, pipeline
from skerch.jobs.config import Config
from skerch.jobs.launchers import progress
from skerch.jobs.launchers.slurm.observed import refuse_live
from skerch.jobs.pipeline import blocks
from skerch.jobs.run_dir import RunDir


def complete(config: Config, launch: launchers.Launch | None = None) -> dict[str, str]:
    """Run the missing tasks, by `launcher.name` or as given; each failure's sentence by task id."""
    launch = launch or launchers.load(config.launcher.name)
    from skerch.jobs.launchers.preflight import count_parameters
    from skerch.jobs.run_dir.binding import bind, locked  # imports torch

    run, (config, _) = RunDir(config.run_dir), blocks.numbered(config, queued=False)
    tasks = pipeline.tasks(config)
    if pipeline.missing(tasks):
        count_parameters(config)
    with locked(run):
        refuse_live(run)
        bind(run, config)
        sweep(run.path)
        missing = pipeline.missing(tasks)
        if len(missing) < len(tasks):
            print(f"{len(tasks) - len(missing)} of {len(tasks)} tasks are done in {run.path}.")
        if not missing:
            return {}
        try:
            with progress.report(len(missing)) as report:
                failures = launch(config, missing, report)
        except KeyboardInterrupt:
            print(
                "Interrupted; what is finished is kept: run the same command again to go on.",
                file=sys.stderr,
            )
            raise
    if failures:
        print(
            f"{len(failures)} of {len(missing)} tasks failed, or need one that did. Mend the cause "
            "and run the same command again: it goes on from here."
        )
    return failures
