"""An experiment with lists of values: a run for each combination, sharing what they can.

Runs that differ in what is trained, or in the data that is kept of it, have a directory each. Those
that differ in nothing but the method and its settings are methods of one run, with one training.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError
from skerch.jobs import launchers, pipeline
from skerch.jobs.commands.side_by_side import print_results
from skerch.jobs.config import (
    Config,
    ConfigError,
    difference,
    identity,
    load,
    method_name,
    parse_override,
)
from skerch.jobs.config.methods import METHODS
from skerch.jobs.config.resources import resources
from skerch.jobs.pipeline.ranges import counted
from skerch.jobs.run_dir import RunDir, command, shown, sweep_file
from skerch.jobs.run_dir.sweep_file import Member, text

OF_METHODS = {section for method in METHODS.values() for section in method.sections}
SECTIONS = {"problem", "training", "method", "masks", *OF_METHODS}  # that give results their value
LISTS = ("training.record_steps", "hessian.splits", "hessian.param_filter", "sketch.rounds")
OF_TRAINING = re.compile(r"(problem|training)\b|hessian\.(datapoints|subset|splits)$")


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep that are asked for."""

    folder: Path
    runs: list[tuple[Member, Config]]


def plan(experiment: str, overrides: Sequence[str], *, submit: bool) -> Sweep:
    """The run of each combination of the values that overrides list, to be submitted or done here.

    Raises ConfigError where a value cannot be, or two runs would have one folder.
    """
    swept: dict[str, list[Any]] = {}
    others = []
    for override in overrides:
        key, value = parse_override(override)
        if _is_swept(key, value):
            swept[key] = _distinct(key, value)
        else:
            others.append(override)
    combinations = [dict(zip(swept, values, strict=True)) for values in product(*swept.values())]
    asked = [[*others, *(f"{k}={json.dumps(v)}" for k, v in c.items())] for c in combinations]
    configs = [load(experiment, each) for each in asked]
    queued = submit or launchers.chosen(configs[0].launcher.name) == "srun"
    if not swept:
        raise ConfigError(
            "There is nothing to sweep: give a list of values, as in training.seed=[1,2]; of "
            f"{', '.join(LISTS)}, which are lists themselves, a list of lists."
        )
    chosen = any(parse_override(each)[0] == "run_dir" for each in others)
    folder = Path(configs[0].run_dir + ("" if chosen else "-sweep"))
    found: dict[tuple[str, str], tuple[Member, Config]] = {}
    for values, config, each in zip(combinations, configs, asked, strict=True):
        member = _member(config, {k: v for k, v in values.items() if _reads(config, k)})
        place = [
            f"run_dir={json.dumps(str(folder / member.run))}",
            f"name={json.dumps(member.name)}",
        ]
        own = load(experiment, [*each, *place], queued=queued)
        other, _ = found.setdefault((member.run, member.name), (member, own))
        if other != member:
            raise ConfigError(
                f"{_told(other)} and {_told(member)} would both be in {member.run}/{member.name}; "
                "sweep them apart, each with a run_dir of its own."
            )
    for key in swept:
        if not any(key in member.values for member, _ in found.values()):
            raise ConfigError(f"{key} is no setting of method {configs[0].method}; leave it out.")
    sweep = Sweep(folder, list(found.values()))
    _check_sweep(sweep, {*swept})
    return sweep


def tell(sweep: Sweep) -> None:
    """Print a line on each run: its directory and method, and how much there is to do."""
    for member, config in sweep.runs:
        tasks = pipeline.tasks(config)
        count, place = len(pipeline.missing(tasks)), shown(Path(config.run_dir))
        print(f"{place}: {member.name}, {count} of {counted(len(tasks), 'task')} to do")


def carry_out(sweep: Sweep, *, submit: bool) -> bool:
    """Do the runs one after the other, or submit them; true if one has failed.

    Raises ConfigError, before any run begins, where what is asked for cannot be.
    """
    from skerch.jobs.commands.report import print_report  # these import torch
    from skerch.jobs.launchers.complete import complete
    from skerch.jobs.launchers.preflight import count_parameters
    from skerch.jobs.run_dir.binding import bind, locked

    for _, config in sweep.runs:
        if submit:
            resources(config)
        if pipeline.missing(pipeline.tasks(config)):
            count_parameters(config, here=not submit)
    for member, config in sweep.runs:
        run = RunDir(config.run_dir)
        if member.name not in run.methods:  # so that status tells of all from the beginning
            with locked(run):
                bind(run, config)
    before = sweep_file.read(sweep.folder)
    members = [*before, *(member for member, _ in sweep.runs if member not in before)]
    sweep_file.write(sweep.folder, members)
    failed = False
    for number, (member, config) in enumerate(sweep.runs, start=1):
        print(f"[{number}/{len(sweep.runs)}] {_told(member)}", flush=True)
        try:
            if submit:
                _submit(config)
            else:
                failed |= bool(complete(config))
        except SkerchError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    if submit:
        verbs = ("status", "report", "cancel")
        print("see: " + "; ".join(command(verb, sweep.folder) for verb in verbs))
    else:
        print_results(sweep.folder)
        runs = dict.fromkeys(RunDir(sweep.folder / member.run) for member in members)
        print_report(list(runs), sweep.folder / "report.html")
    return failed


def _is_swept(key: str, value: Any) -> bool:
    """Whether a key's value is a list of values."""
    if key.partition(".")[0] not in SECTIONS or not isinstance(value, list):
        return False
    return key not in LISTS or any(isinstance(each, list) for each in value)


def _distinct(key: str, values: list[Any]) -> list[Any]:
    """The values of a key, each once."""
    if not values:
        raise ConfigError(f"{key}=[] has no value to sweep; give some, or leave it out.")
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ConfigError(f"{key} has {text(value)} twice; give each value once.")
    return values


def _reads(config: Config, key: str) -> bool:
    """Whether a key is of a config's method, or of what all methods have."""
    section = key.partition(".")[0]
    return section not in OF_METHODS or section in METHODS[config.method].sections


def _member(config: Config, values: dict[str, Any]) -> Member:
    """A run by its values, which name its directory and, where others share that, its method."""
    told = () if config.name else ("method", "hessian.curvature")  # by the method's own name
    trained, other = [], [method_name(config)]
    for key, value in values.items():
        if OF_TRAINING.match(key):
            trained.append(f"{key}={text(value)}")
        elif key not in told:
            other.append(f"{key}-{text(value)}")
    return Member(",".join(trained) or Path(config.run_dir).name, "-".join(other), values)


def _told(member: Member) -> str:
    return ", ".join(f"{key}={text(value)}" for key, value in member.values.items())


def _check_sweep(sweep: Sweep, keys: set[str]) -> None:
    """Refuse a folder that is something else, or has runs that differ in more than the keys."""
    folder, before = sweep.folder, sweep_file.read(sweep.folder)
    if RunDir(folder).config.exists():
        raise ConfigError(f"{folder} is a run directory; set another run_dir for the sweep.")
    there = {key for member in before for key in member.values}
    if there and there != keys:
        raise ConfigError(
            f"{folder} is a sweep of {', '.join(sorted(there))}; set another run_dir for one of "
            f"{', '.join(sorted(keys))}."
        )
    swept = tuple(f"{key}{end}" for key in keys for end in ".:")
    kept = [old for old in before if old.name in RunDir(folder / old.run).methods]
    for old, (_, config) in product(kept[:1], sweep.runs):
        found = RunDir(folder / old.run).load(old.name)
        compared = "method" if found.method == config.method else "training"
        changes = difference(identity(found, compared), identity(config, compared))
        if others := [change for change in changes if not change.startswith(swept)]:
            raise ConfigError(
                f"{folder} has runs of other settings ({'; '.join(others)}); take the old values "
                "back, or set another run_dir."
            )


def _submit(config: Config) -> None:
    """Submit a run, and print what is said but for a line on each job."""
    from skerch.jobs.launchers.slurm.submit import submit

    with redirect_stdout(StringIO()) as said:
        submit(config)
    for line in said.getvalue().splitlines():
        if not line.startswith("job "):
            print(line.partition("; see: ")[0], flush=True)
