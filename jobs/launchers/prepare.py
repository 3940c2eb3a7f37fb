"""Make a run directory for stages that are started by hand, as slurm/submit_all.sh does.

    python -m skerch.jobs.launchers.prepare EXPERIMENT.yaml [key=value …]

prints the run directory, the method's name, and for each Hessian a line `STEP SPLIT TASKS…`: of how
many tasks the measurement array of each round is.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict

from skerch.errors import SkerchError
from skerch.files import print_always, refusals_named
from skerch.jobs import pipeline
from skerch.jobs.config import Config, ConfigError, load
from skerch.jobs.launchers.preflight import count_parameters
from skerch.jobs.pipeline import blocks
from skerch.jobs.run_dir import RunDir, method_name
from skerch.jobs.run_dir.binding import bind, locked


def prepare(config: Config) -> None:
    """Bind the run directory to a config, make the folder of its logs, and print what is to do.

    Raises ConfigError or RunDirError where that cannot be.
    """
    run, (config, _) = RunDir(config.run_dir), blocks.numbered(config, queued=True)
    count_parameters(config, here=False)
    tasks: dict[tuple[int, str], Counter[int]] = defaultdict(Counter)  # by Hessian and round
    for task in pipeline.tasks(config):
        if task.stage == "measure":
            tasks[task.arguments["step"], task.arguments["split"]][task.arguments["round"]] += 1
    if not tasks:
        raise ConfigError(
            "Stages are started by hand where there are measurement arrays, and this run has "
            "none (many small rounds are one task, and so is a Hessian by another method than "
            "seigh); take: python -m skerch submit"
        )
    with locked(run):
        bind(run, config)
        run.logs.mkdir(parents=True, exist_ok=True)
    print(run.path, method_name(config), sep="\n")
    for (step, split), arrays in tasks.items():
        print(step, split, *arrays.values())


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m skerch.jobs.launchers.prepare")
    parser.add_argument("experiment", help="an experiment file, or a name: digits")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    print_always()
    try:
        with refusals_named():
            prepare(load(options.experiment, options.overrides, queued=True))
    except SkerchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
