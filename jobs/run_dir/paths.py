"""The one place that names a path inside a run directory.

Paths are computed, never looked for. What a library format keeps within a measurement round's
folder, the format itself names.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skerch.errors import SkerchError
from skerch.jobs import config as configs
from skerch.jobs.config import Config, ConfigError, method_name
from skerch.jobs.config.methods import METHODS
from skerch.jobs.run_dir import provenance, sweep_file
from skerch.measurements.manifest import manifest_path, range_path, read


class RunDirError(SkerchError):
    """A run directory that cannot be made or used."""


def command(verb: str, path: Path, *arguments: str) -> str:
    """What to type, from the current folder, for a command on a run or an experiment file."""
    return shlex.join(["python", "-m", "skerch", verb, shown(path), *arguments])


def shown(path: Path) -> str:
    """A path as seen from the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if here in path.parents else path)


@dataclass(frozen=True)
class StepDir:
    """One Hessian's folder: a method, at a training step, of a split."""

    path: Path

    def measurements(self, round: int) -> Path:
        """The folder of a round's measurement array; rounds count from 1."""
        return self.path / "measurements" / f"round-{round}"

    def range(self, round: int) -> Path:
        """Q, the test vectors of a later round."""
        return range_path(self.measurements(round))

    @property
    def rounds(self) -> Path:
        """How the rounds were judged against the target, where there is one."""
        return self.path / "measurements" / "rounds.json"

    def measured(self, hashes: Sequence[str]) -> bool:
        """Whether these are the hashes of what is measured, as far as its manifests are here.

        They are those of round 1, 2, …, or the one of the provenance of a method without rounds.

        Raises:
            SkerchError: a manifest is damaged.
        """
        if self.provenance.exists():
            return list(hashes) == [provenance.digest(self.provenance)]
        paths = [manifest_path(self.measurements(n)) for n in range(1, len(hashes) + 1)]
        pairs = zip(paths, hashes, strict=True)
        return bool(hashes) and all(not p.exists() or read(p).hash() == h for p, h in pairs)

    @property
    def provenance(self) -> Path:
        """Of what the results of a method without measurement arrays are."""
        return self.path / provenance.PROVENANCE

    @property
    def products(self) -> Path:
        """The folder of the products that a Krylov method has made, until it has its results."""
        return self.path / "products"

    @property
    def gradient(self) -> Path:
        """The gradient of the mean loss; older versions wrote none."""
        return self.path / "gradient.h5"

    @property
    def merged(self) -> Path:
        """The summary, and unless `consolidate: false` the whole array."""
        return self.path / "merged.h5"

    @property
    def eigh(self) -> Path:
        """Eigenvalues, eigenvectors and errors, by a sketch or by the Lanczos method."""
        return self.path / "eigh.h5"

    @property
    def exact(self) -> Path:
        """The exact eigenvalues and first eigenvectors, once they were asked for."""
        return self.path / "exact.h5"

    @property
    def layers(self) -> Path:
        """The layers that have Kronecker factors, and why parameters are in none."""
        return self.path / "layers.json"

    def partial(self, what: str, round: int, unit: int) -> Path:
        """Sums of a part of the data, over a partition of the layers."""
        return self.path / "partial" / f"{what}-{round}-{unit:06d}.safetensors"

    def tensors(self, what: str, partition: int, partitions: int) -> Path:
        """Factors, eigenbasis or eigenvalues of a partition of the layers."""
        of = f"-{partition + 1:05d}-of-{partitions:05d}" if partitions > 1 else ""
        return self.path / f"{what}{of}.safetensors"

    @property
    def overlap(self) -> Path:
        """overlap(k), baselines and mask indices."""
        return self.path / "overlap.json"


@dataclass(frozen=True)
class RunDir:
    """The paths of one experiment's directory."""

    path: Path  # absolute

    def __init__(self, path: str | os.PathLike[str]):
        object.__setattr__(self, "path", Path(path).absolute())

    @property
    def config(self) -> Path:
        """The resolved config of the latest run; `run` on it repeats that run."""
        return self.path / "config.yaml"

    @property
    def training(self) -> Path:
        """The training's folder."""
        return self.path / "training"

    @property
    def training_config(self) -> Path:
        """The config that the training is bound to, with all its steps and splits."""
        return self.training / "training_config.yaml"

    @property
    def parameters(self) -> Path:
        """One column of parameters per recorded step."""
        return self.training / "parameters.h5"

    @property
    def hessian_data(self) -> Path:
        """The exact Hessian datapoints of each split."""
        return self.training / "hessian_data.pt"

    @property
    def log(self) -> Path:
        """Losses and accuracies at the recorded steps, one JSON object a line."""
        return self.training / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Where training goes on after a kill."""
        return self.training / "checkpoint.pt"

    @property
    def figures(self) -> Path:
        """The figures' folder."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """The page on all that is there."""
        return self.path / "report.html"

    @property
    def logs(self) -> Path:
        """The folder with one log a task."""
        return self.path / "logs"

    @property
    def task_records(self) -> Path:
        """One JSON object a line for each task that ended: id, stage, seconds, error."""
        return self.logs / "tasks.jsonl"

    def calibration(self, name: str) -> Path:
        """How long a block of a method takes, by `plan --calibrate`."""
        return self.logs / f"calibration-{name}.json"

    @property
    def jobs(self) -> Path:
        """Every job submitted to a scheduler, one JSON object a line."""
        return self.path / "slurm" / "jobs.jsonl"

    def method(self, name: str) -> Path:
        """A method's folder."""
        return self.path / name

    def hessian_config(self, name: str) -> Path:
        """The config that a method's results are bound to, as its latest run had it."""
        return self.method(name) / "hessian_config.yaml"

    def stabilisation(self, name: str) -> Path:
        """What a method's Hessians at all steps have in common, once it was asked for."""
        return self.method(name) / "stabilisation.json"

    @property
    def methods(self) -> list[str]:
        """The names of the methods that have results here, or are to have them."""
        return sorted(path.parent.name for path in self.path.glob("*/hessian_config.yaml"))

    def load(self, name: str | None = None) -> Config:
        """The config of a method, or of the latest run; also where the directory was moved to.

        Raises:
            ConfigError: this is no run directory, it has no such method, or a config is damaged.
        """
        if not os.path.exists(self.config):
            raise ConfigError(f"{self.path} is no run directory: it has no {self.config.name}.")
        if name is not None and name not in self.methods:
            there = ", ".join(self.methods) or "nothing"
            raise ConfigError(f"{self.path} has no {name}; there is {there}.")
        config = configs.load_resolved(self.config if name is None else self.hessian_config(name))
        return replace(config, run_dir=str(self.path))

    def grown(self, config: Config) -> Config:
        """A config of this run with all the steps and splits that its training is bound to."""
        if not self.training_config.exists():
            return config
        bound = configs.load_resolved(self.training_config)
        return configs.grown(config, bound.training.record_steps, bound.hessian.splits)

    def hessians(self, config: Config) -> list[tuple[int, str]]:
        """The steps and splits that a method's latest run is of, and others that have results."""
        asked = config.training.record_steps
        whole = self.grown(config)
        return [
            (step, split)
            for step in whole.training.record_steps
            for split in whole.hessian.splits
            if (step in asked and split in config.hessian.splits)
            or self.result(config, step, split).exists()
        ]

    def step(self, name: str, step: int, split: str) -> StepDir:
        """The folder of a method's results at a training step, of a split."""
        return StepDir(self.method(name) / _step_name(step, split))

    def result(self, config: Config, step: int, split: str) -> Path:
        """The file that is there once all of a Hessian is done."""
        return self.step(method_name(config), step, split).path / METHODS[config.method].result

    @property
    def training_figure(self) -> Path:
        """Losses and accuracies against the step."""
        return self.figures / "training.png"

    def figure(self, name: str, step: int, split: str) -> Path:
        """A figure on one Hessian."""
        return self.figures / f"{name}-{_step_name(step, split)}.png"

    def task_log(self, task_id: str) -> Path:
        """A task's log; what a file name cannot hold becomes a dash."""
        return self.logs / (re.sub(r"[^\w.-]+", "-", task_id) + ".log")

    def task_lock(self, task_id: str) -> Path:
        """What the job that is at a task holds meanwhile."""
        return self.task_log(task_id).with_suffix(".lock")


def find_run(path_or_name: str) -> RunDir:
    """The run that a directory, an experiment file or its name stands for.

    Raises ConfigError where it is not there; it names those that are near.
    """
    run = RunDir(configs.run_directory(path_or_name))
    if os.path.exists(run.config):
        return run
    near = sorted(
        str(p.parent) for pattern in ("", "runs/") for p in Path().glob(f"{pattern}*/config.yaml")
    )
    there = f" There are {', '.join(near[:8])}." if near else ""
    raise ConfigError(
        f"{run.path} is no run directory: it has no {run.config.name}.{there} "
        "python -m skerch run EXPERIMENT.yaml makes one."
    )


def find_runs(names: Sequence[str]) -> list[RunDir]:
    """The runs that some names stand for: of each one run, or all of a sweep's folder.

    Raises ConfigError where one is not there.
    """
    found = []
    for name in names:
        folder = find_sweep(name)
        if folder is None:
            found.append(find_run(name))
        else:
            found += [RunDir(folder / member.run) for member in sweep_file.read(folder)]
    return list(dict.fromkeys(found))


def find_sweep(path_or_name: str) -> Path | None:
    """The folder of a sweep, if a name stands for one and not for a run."""
    folder = configs.run_directory(path_or_name).absolute()
    return folder if sweep_file.exists(folder) else None


def _step_name(step: int, split: str) -> str:
    return f"step-{step:06d}-{split}"
