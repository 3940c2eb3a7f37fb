"""What a run directory is bound to: the identity of its training, and of each of its methods.

The truth is in the results themselves: `parameters.h5` and the manifests hold the identity that
they were made for. The configs beside them are what stages read.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from skerch.files import cause
from skerch.jobs import config as configs
from skerch.jobs.config import Config, ConfigError
from skerch.jobs.config.checkpoints import checkpoint_files
from skerch.jobs.config.methods import METHODS
from skerch.jobs.run_dir import RunDir, method_name, provenance, rounds_file
from skerch.jobs.run_dir.paths import RunDirError
from skerch.jobs.run_dir.training_files import check_checkpoints, describe, load_column


class LockedError(RunDirError):
    """A run directory in which another process is at work."""


@contextmanager
def locked(run: RunDir) -> Iterator[int]:
    """Keep other local runs out of a directory meanwhile; it is made if it is not there.

    Yields the descriptor of the lock, which processes that inherit it hold until they end, too.

    Raises RunDirError where it cannot be made, LockedError where another process is at work in it.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock = (run.path / ".lock").open("ab")
    except OSError as error:
        raise _unusable(run, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"Another process is running tasks in {run.path}, or submitting them; wait until "
                "it is done, then do the same again."
            ) from None
        except OSError as error:  # some network file systems have no locks
            print(
                f"{run.path} cannot be locked ({cause(error)}): see that nobody else starts tasks "
                "in it meanwhile.",
                file=sys.stderr,
            )
        yield lock.fileno()


def bind(run: RunDir, config: Config) -> None:
    """Bind training and method of a run directory to a config.

    A part that has results must have the config's identity. The configs in the directory then take
    the new values of the other keys; that of the training keeps the steps and splits it has.

    Raises ConfigError where a part has results of another identity, RunDirError where measurements
    are of another run, and RecordedError where checkpoints are no longer those that are recorded.
    """
    name = method_name(config)
    try:
        for folder in (run.training, run.method(name)):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(run, error) from error
    check_bound(run, config)
    configs.save(_grown(run, config), run.training_config)
    for path in (run.hessian_config(name), run.config):
        configs.save(config, path)


def check_bound(run: RunDir, config: Config) -> None:
    """Raise what `bind` raises where results are of something else; change nothing."""
    _check_method(run, config)
    _check_problem(run, config)
    _check(run, "training", _training_identity(run), config)
    _check(run, "method", _method_identity(run, config), config)
    if run.parameters.exists() and config.training.checkpoints is not None:
        check_checkpoints(run, checkpoint_files(config.training.checkpoints))
    _check_measurements(run, config)


def _check_problem(run: RunDir, config: Config) -> None:
    """Refuse another problem of the same name: its module lies elsewhere, and is another file."""
    factory, folder = config.problem.get("factory"), config.problem_path
    if factory is None or folder is None or not run.parameters.exists():
        return
    with suppress(ConfigError):  # it is damaged, and written anew
        before = configs.load_resolved(run.training_config).problem_path or folder
        module = factory.partition(":")[0].replace(".", "/") + ".py"
        old, new = Path(before, module), Path(folder, module)
        if old == new or not (old.is_file() and new.is_file()):
            return
        if old.read_bytes() != new.read_bytes():
            raise RunDirError(
                f"{run.path} has results of the problem in {old}, and {new} is another; set "
                "another run_dir, as in run_dir=runs/another."
            )


def _grown(run: RunDir, config: Config) -> Config:
    """The config with the training's steps and splits: all that jobs may be at, if it adds none.

    Else with those that are recorded, so that nobody asks again for what was asked once in vain.
    """
    asked = config.training.record_steps, config.hessian.splits
    with suppress(ConfigError):  # it is not there yet, or damaged, and written anew
        bound = configs.load_resolved(run.training_config)
        changes = configs.difference(*(configs.identity(c, "training") for c in (bound, config)))
        if not changes and configs.grown(bound, *asked) == bound:
            return run.grown(config)
    if not run.parameters.exists():
        return config
    there = describe(run)
    return configs.grown(config, there.steps, there.datapoints)


def _check_method(run: RunDir, config: Config) -> None:
    """Refuse a folder that has results of another method."""
    name = method_name(config)
    folder, path = run.method(name), run.hessian_config(name)
    if not path.exists() or not any(folder.glob("step-*/*")):
        return
    with suppress(ConfigError):  # it is damaged; what it says is not needed where there are results
        there = configs.load_resolved(path).method
        if there != config.method:
            raise RunDirError(
                f"{folder} has results of method {there}, and {config.method} is asked for; set "
                f"another name (as in name={config.method}-2), or another run_dir."
            )


def _check_measurements(run: RunDir, config: Config) -> None:
    """Refuse measurements of other settings, parameters or datapoints than the run has."""
    if not run.parameters.exists():
        return
    there, method = describe(run), METHODS[config.method]
    datapoints = there.datapoints
    for step in filter(there.steps.__contains__, config.training.record_steps):
        parameters = None
        for split in filter(datapoints.__contains__, config.hessian.splits):
            directory = run.step(method_name(config), step, split)
            if "sketch" in method.sections:
                rounds_file.check_growth(directory, config)
            for path in method.manifests_in(directory.path):
                if parameters is None:
                    parameters = load_column(run, step).hash()
                found = provenance.read(path)
                ours = replace(
                    found,
                    step=step,
                    split=split,
                    parameters_hash=parameters,
                    datapoints_hash=datapoints[split],
                )
                wanted = configs.identity(config, "method")
                if found != ours or configs.difference(found.identity, wanted):
                    raise RunDirError(
                        f"{path} is of other measurements than this run's; delete "
                        f"{directory.path} to measure anew."
                    )


def _unusable(run: RunDir, error: OSError) -> RunDirError:
    return RunDirError(
        f"run_dir {run.path} cannot be used: {cause(error)} ({error.filename}). Remove what is in "
        "the way or give permission there, or set another run_dir."
    )


def _training_identity(run: RunDir) -> dict[str, Any] | None:
    """The identity that parameters.h5 was made for; None before training."""
    return dict(describe(run).identity) if run.parameters.exists() else None


def _method_identity(run: RunDir, config: Config) -> dict[str, Any] | None:
    """The identity that a method's results were made for; None where there are none."""
    name = method_name(config)
    folder, path = run.method(name), run.hessian_config(name)
    found = next(METHODS[config.method].manifests_in(folder, "step-*/"), None)
    if found is not None:
        return dict(provenance.read(found).identity)
    if not any(folder.glob("step-*/*")):
        return None
    if path.exists():
        return configs.identity(configs.load_resolved(path), "method")
    raise ConfigError(
        f"{folder} has results, but neither {path.name} nor a manifest that says of what; set "
        "another name, or delete it."
    )


def _check(run: RunDir, part: str, old: dict[str, Any] | None, new: Config) -> None:
    """Refuse a config whose identity is not what a part holds, with the ways out."""
    changes = configs.difference(old or {}, configs.identity(new, part))
    if old is None or not changes:
        return
    way_out = f"another name (as in name={new.method}-2) or " if part == "method" else ""
    raise ConfigError(
        f"{run.path} holds results of other settings, which stay as they are:\n  "
        + "\n  ".join(changes)
        + f"\nSet {way_out}another run_dir, or take the old values back; a run grows by steps, "
        "splits and checkpoints only."
    )
