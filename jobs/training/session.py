"""Train a problem's network and record its parameters, and the Hessian's datapoints.

Initialisation, data order and whatever is drawn during a step are functions of (seed, step), so
that a training that was killed, or is to have more steps, goes on to the same bits: from its
checkpoint, or from the start where a step is missing before that. Afterwards no stage touches a
dataset again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from operator import itemgetter
from typing import Any
from zlib import crc32

import torch
from torch import nn

from skerch.curvature.batching import to_device
from skerch.errors import SkerchError
from skerch.jobs.config import difference, identity
from skerch.jobs.config.checkpoints import files_of
from skerch.jobs.config.schema import Config, Training
from skerch.jobs.pipeline.task_log import Progress
from skerch.jobs.problems import Problem, build_model, load_data, load_problem
from skerch.jobs.run_dir import RunDir, training_files
from skerch.jobs.run_dir.provenance import Description
from skerch.jobs.run_dir.training_files import Column
from skerch.jobs.training import datapoints
from skerch.jobs.training.losses import Losses
from skerch.jobs.training.optimizer import make_optimizer
from skerch.jobs.training.state_dicts import load_into
from skerch.randomness import stream
from skerch.rounding import rounding

CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into writing checkpoints, if it is not short
FIRST_CHECKPOINT = 1 / 60  # of the time limit, at most, until a checkpoint is begun
NEXT_CHECKPOINT = 1 / 10  # of the time limit, at most, until another, where writing takes long


class TrainingError(SkerchError):
    """A training that cannot go on; the message names the step or the file."""


def train(
    run: RunDir,
    config: Config,
    progress: Progress | None = None,
    *,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 30.0,
    time_limit: float = math.inf,
) -> None:
    """Write `parameters.h5`, `hessian_data.pt` and `log.jsonl`, or add to them what they lack.

    Trains up to the last of `training.record_steps`, or reads the state dicts of
    `training.checkpoints`. A checkpoint is written about every `checkpoint_seconds`, more often
    where the process is stopped after `time_limit` seconds, and at the end. What is recorded stays:
    steps and splits that are not asked for, too.

    Raises:
        ConfigError: the problem, the optimizer or the datapoints cannot be had.
        StateDictError: a file of `training.checkpoints` cannot be read, or does not fit.
        TrainingError: a loss is not finite, or what is there is of another training, or of other
            data.
    """
    wanted = identity(config, "training")
    hessian, device = config.hessian, torch.device(device)
    old = training_files.describe(run) if run.parameters.exists() else None
    missing = {*config.training.record_steps, *hessian.splits}
    hashes: dict[str, str] = dict(old.datapoints) if old else {}
    if old:
        changes = difference(old.identity, wanted)
        if changes:
            raise TrainingError(
                f"{run.parameters} is of another training ({'; '.join(changes)}); delete it to "
                "train again, or set another run_dir."
            )
        if not run.log.exists():
            training_files.write_log(run.log, old.log)
        missing -= {*old.steps, *hashes}
        if run.hessian_data.exists() and not missing:
            return
    from skerch.analysis.figures import save, training_figure  # matplotlib takes half a second

    problem = load_problem(config.problem, config.problem_path)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        data, batches = _load(problem, config, hashes)
        found = {split: training_files.content_hash(batch) for split, batch in batches.items()}
        changed = [split for split in hashes if found[split] != hashes[split]]
        if changed:
            raise TrainingError(
                f"The problem's data are no longer those of the training in {run.path} (split "
                f"{', '.join(changed)}), so that nothing can be added to it; what is there stays. "
                "Bring the old data back, or set another run_dir."
            )
        if not run.hessian_data.exists() or found != hashes:
            training_files.write_hessian_data(run.hessian_data, batches)
        if old and not missing:
            return
        session = _Session(run, config.training, problem, data, batches, device, wanted, old)
        if config.training.checkpoints is None:
            session.train(
                progress, min(checkpoint_seconds, time_limit * FIRST_CHECKPOINT), time_limit
            )
        else:
            session.read_checkpoints(progress)
    save(training_figure(session.log), run.training_figure)
    # The last file: where it is, nothing is made again.
    training_files.write_parameters(
        run.parameters,
        session.model,
        session.columns,
        wanted,
        found,
        session.log,
        session.checkpoints,
    )
    session.keep()


def _load(
    problem: Problem, config: Config, others: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data of the training and of the config's and other splits, and each split's datapoints.

    What a split draws does not depend on the others.
    """
    splits = list(dict.fromkeys([*config.hessian.splits, *others]))
    data, batches = {}, {}
    for split in dict.fromkeys(["train", *splits]):
        _seed(config.training.seed, "data", 0 if split == "train" else crc32(split.encode()))
        data[split] = load_data(problem, split)
        if split in splits:
            batches[split] = datapoints.hessian_batch(data[split], split, config.hessian)
    return data, batches


class _Session:
    """One training: its network, data and state."""

    def __init__(
        self,
        run: RunDir,
        training: Training,
        problem: Problem,
        data: Mapping[str, Any],
        datapoints: Mapping[str, Any],
        device: torch.device,
        wanted: Mapping[str, Any],
        old: Description | None,
    ):
        self.run = run
        self.training = training
        self.problem = problem
        self.data = data
        self.datapoints = datapoints  # the Hessian's, by split
        self.device = device
        self.identity = json.dumps(wanted, sort_keys=True)
        self.model = initial_model(problem, training.seed).to(device)
        self.losses = Losses(problem, training, data, datapoints, device)
        self.step = 0
        self.columns: dict[int, Column] = {}  # recorded so far, by step
        self.log: list[dict[str, Any]] = []
        self.checkpoints: dict[int, str] = {}  # hashes of the state dicts read, by step
        self.recorded: dict[int, Column] = {}  # what parameters.h5 has already
        self.threads = torch.get_num_threads()
        if old:
            self._take_over(old)

    def _take_over(self, old: Description) -> None:
        """Begin with what is recorded, and log the splits that are new there."""
        self.threads = old.threads or self.threads
        self.checkpoints = dict(old.checkpoints)
        self.log = list(old.log)
        for step in old.steps:
            self.recorded[step] = training_files.load_column(self.run, step)
            model = training_files.load_model(self.run, self.problem, step).to(self.device)
            losses = {  # older logs have none
                split: figures["hessian_batch_loss"]
                for entry in self.log
                for split, figures in entry.items()
                if entry["step"] == step and split != "step" and "hessian_batch_loss" in figures
            }
            self._require_same_loss(model, step, losses)
            if any(not self._logged(step, split) for split in self.data):
                self._log(step, model)
        self.columns = dict(self.recorded)

    def train(
        self, progress: Progress | None, checkpoint_seconds: float, time_limit: float
    ) -> None:
        """Train from the start, or the checkpoint, until all steps to record are.

        A step before one that is recorded already is shown to be of the same training there.
        """
        training = self.training
        self.optimizer = optimizer = make_optimizer(training, self.model)
        self._resume()
        torch.set_num_threads(self.threads)  # they decide the last bits
        missing = [step for step in training.record_steps if step not in self.columns]
        if not missing:
            return
        last = min((step for step in self.columns if step > missing[-1]), default=missing[-1])
        dataset = self.data["train"]
        order = datapoints.shuffled(dataset, training, self.step, last)
        batches = datapoints.batches(dataset, order)
        due = time.monotonic() + checkpoint_seconds
        while True:
            if self.step in self.columns:
                self._compare(self.step)
            elif self.step in training.record_steps:
                self.record(self.step)
            if progress is not None:
                progress(self.step, last, "steps")
            if self.step == last:
                return
            if time.monotonic() >= due:
                begin = time.monotonic()
                self._checkpoint()
                end = time.monotonic()
                pause = max(checkpoint_seconds, (end - begin) / CHECKPOINT_SHARE)
                due = end + min(pause, time_limit * NEXT_CHECKPOINT)
            self.step += 1
            _seed(training.seed, "training", self.step)
            loss = self._update(optimizer, to_device(next(batches), self.device))
            if not math.isfinite(loss):
                raise self._spoilt(f"The training loss is {loss}", self.step)

    def read_checkpoints(self, progress: Progress | None) -> None:
        """Record the state dicts of a training done elsewhere."""
        steps = [step for step in self.training.record_steps if step not in self.columns]
        files = files_of(self.training, steps)
        for index, (step, path) in enumerate(files.items()):
            self.checkpoints[step] = training_files.file_hash(path)
            load_into(self.model, path)
            self.record(step)
            if progress is not None:
                progress(index + 1, len(files), "checkpoints")

    def record(self, step: int) -> None:
        """Take a column, and log the losses and accuracies of all splits."""
        self._log(step, self.model)
        for name, parameter in self.model.named_parameters():
            if not parameter.isfinite().all():
                raise self._spoilt(f"Values of {name} are not finite", step)
        self.columns[step] = training_files.column(self.model)

    def _spoilt(self, what: str, step: int) -> TrainingError:
        """What a training that diverged, or a faulty problem, has led to, and the way out."""
        elsewhere = self.training.checkpoints is not None
        lower = "" if elsewhere else f"lower training.lr (now {self.training.lr}), or "
        return TrainingError(f"{what} at step {step}; {lower}look at the problem's data and loss.")

    def _log(self, step: int, model: nn.Module) -> None:
        """Log a model's losses and accuracies at a step, of the splits that have none there yet."""
        entry: dict[str, Any] = {"step": step}
        for split in self.data:
            if self._logged(step, split):
                continue
            entry[split] = figures = self.losses.of_split(model, split)
            if split in self.datapoints:
                figures["hessian_batch_loss"] = self.losses.of_datapoints(model, split)
            if not math.isfinite(figures["loss"]):
                raise self._spoilt(f"The {split} loss is {figures['loss']}", step)
        self.log.append(entry)
        self.log.sort(key=itemgetter("step"))
        training_files.write_log(self.run.log, self.log)

    def _logged(self, step: int, split: str) -> bool:
        return any(entry["step"] == step and split in entry for entry in self.log)

    def _require_same_loss(self, model: nn.Module, step: int, losses: Mapping[str, float]) -> None:
        """Refuse to go on with another loss than that of the `losses` by split."""
        tolerance = rounding(next(model.parameters()).dtype)
        for split in self.datapoints.keys() & losses.keys():
            was, now = losses[split], self.losses.of_datapoints(model, split)
            if not abs(now - was) <= tolerance * abs(was):
                raise TrainingError(
                    f"The problem's loss is no longer that of the training in {self.run.path} "
                    f"(step {step}, split {split}: it was {was:.6g} and is {now:.6g}), so that "
                    "nothing can be added to it; what is there stays. Take the old code back, "
                    "or set another run_dir."
                )

    def _compare(self, step: int) -> None:
        """Refuse to go on from other parameters than those that are recorded at a step."""
        if training_files.column(self.model).hash() != self.columns[step].hash():
            self.run.checkpoint.unlink(missing_ok=True)  # it may be of these others
            raise TrainingError(
                f"Trained again, the parameters of step {step} are not those in "
                f"{self.run.parameters}: this is another kind of machine, version of PyTorch, code "
                "or data. What is there stays; add steps where it was trained, or set another "
                "run_dir."
            )

    def _update(self, optimizer: torch.optim.Optimizer, batch: Any) -> float:
        """One optimizer step; the loss before it."""

        def closure() -> float:
            optimizer.zero_grad()
            loss = self.losses.of_batch(self.model, batch)
            torch.autograd.backward(loss)
            return loss.item()

        self.model.train()
        return float(optimizer.step(closure))

    def keep(self) -> None:
        """Checkpoint the end of a training once its columns are recorded, to go on from there."""
        if self.step and self.step == max(self.columns):
            self.recorded = self.columns
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Write the whole state, so that it can be loaded with weights_only."""
        new = self.columns.keys() - self.recorded
        state = {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "threads": torch.get_num_threads(),
            "step": self.step,
            "losses": {s: self.losses.of_datapoints(self.model, s) for s in self.datapoints},
            "log": self.log,
            "columns": {step: asdict(self.columns[step]) for step in sorted(new)},
        }
        training_files.write_checkpoint(self.run.checkpoint, state)

    def _resume(self) -> None:
        """Take over the checkpoint, if there is one of this training before all that is missing."""
        if not self.run.checkpoint.exists():
            return
        saved = training_files.load_checkpoint(self.run.checkpoint)
        if difference(json.loads(saved["identity"]), json.loads(self.identity)):
            return
        columns = {step: Column(**parts) for step, parts in saved["columns"].items()}
        columns |= self.recorded
        if any(s < saved["step"] for s in self.training.record_steps if s not in columns):
            return
        self.threads = saved["threads"]
        self.model.load_state_dict(saved["model"])
        self._require_same_loss(self.model, saved["step"], saved.get("losses", {}))
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
        self.log += [entry for entry in saved["log"] if entry not in self.log]
        self.columns = columns


def initial_model(problem: Problem, seed: int) -> nn.Module:
    """The network before its first step, a function of the training's seed."""
    _seed(seed, "training", 0)
    return build_model(problem)


def _seed(seed: int, role: str, step: int) -> None:
    """Make what a step draws a function of (seed, role, step)."""
    torch.manual_seed(int(stream(seed, role, step, 0).integers(2**63)))
