"""Train a problem's network and record its parameters, and the Hessian's datapoints.

Initialisation, data order and whatever is drawn during a step are functions of (seed, step), so
that a training that was killed goes on from its checkpoint to the same bits. Afterwards no stage
touches a dataset again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn

from skerch.curvature.batching import count_examples, to_device
from skerch.errors import SkerchError
from skerch.jobs import datapoints, recorded
from skerch.jobs.checkpoints import files_of
from skerch.jobs.config import difference, identity
from skerch.jobs.operators import resolve_device
from skerch.jobs.problems import Problem, build_model, load_data, load_problem
from skerch.jobs.recorded import Column
from skerch.jobs.run_dir import RunDir
from skerch.jobs.schema import Config, ConfigError, Training, unknown
from skerch.jobs.stage import Context, main
from skerch.jobs.state_dicts import load_into
from skerch.randomness import stream

CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into writing checkpoints

Progress = Callable[[int, int, str], None]


class TrainingError(SkerchError):
    """A training that cannot go on; the message names the step or the file."""


def run(context: Context) -> None:
    """The stage."""
    train(context.run, context.config, context.progress, device=resolve_device(context.config))


def train(
    run: RunDir,
    config: Config,
    progress: Progress | None = None,
    *,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 30.0,
) -> None:
    """Write `parameters.h5`, `hessian_data.pt` and `log.jsonl`, those that are not there yet.

    Trains up to the last of `training.record_steps`, or reads the state dicts of
    `training.checkpoints`. A checkpoint is written about every `checkpoint_seconds`.

    Raises:
        ConfigError: the problem, the optimizer or the datapoints cannot be had.
        StateDictError: a file of `training.checkpoints` cannot be read, or does not fit.
        TrainingError: a loss is not finite, or what is there is of another training.
    """
    wanted = identity(config, "training")
    trained = run.parameters.exists()
    if trained:
        description = recorded.describe(run)
        changes = difference(description["identity"], wanted)
        if changes:
            raise TrainingError(
                f"{run.parameters} is of another training ({'; '.join(changes)}); delete it to "
                "train again, or set another run_dir."
            )
        if not run.log.exists():
            recorded.write_log(run.log, description["log"])
        if run.hessian_data.exists():
            return
    from skerch.analysis.figures import save, training_figure  # matplotlib takes half a second

    problem = load_problem(config.problem, config.problem_path)
    hessian, device = config.hessian, torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _seed(config.training.seed, "data", 0)
        splits = dict.fromkeys(["train", *hessian.splits])
        data = {split: load_data(problem, split) for split in splits}
        batches = {s: datapoints.hessian_batch(data[s], s, hessian) for s in hessian.splits}
        hashes = {split: recorded.content_hash(batch) for split, batch in batches.items()}
        if trained and hashes != description["datapoints"]:
            raise TrainingError(
                f"{run.hessian_data} is missing, and the problem's data are no longer those of the "
                "training; bring the old ones back, or set another run_dir."
            )
        recorded.write_hessian_data(run.hessian_data, batches)
        if trained:
            return
        session = _Session(run, config.training, problem, data, device, wanted)
        if config.training.checkpoints is None:
            session.train(progress, checkpoint_seconds)
        else:
            session.read_checkpoints(progress)
    save(training_figure(session.state.log), run.training_figure)
    # The last file: where it is, nothing is made again.
    recorded.write_parameters(
        run.parameters,
        session.model,
        session.state.columns,
        wanted,
        hashes,
        session.state.log,
        session.checkpoints,
    )


@dataclass
class _State:
    """How far a training has come, besides the network and the optimizer."""

    step: int = 0
    columns: dict[int, Column] = field(default_factory=dict)  # recorded so far, by step
    log: list[dict[str, Any]] = field(default_factory=list)


class _Session:
    """One training: its network, data and state."""

    def __init__(
        self,
        run: RunDir,
        training: Training,
        problem: Problem,
        data: Mapping[str, Any],
        device: torch.device,
        wanted: Mapping[str, Any],
    ):
        self.run = run
        self.training = training
        self.problem = problem
        self.data = data
        self.device = device
        self.identity = json.dumps(wanted, sort_keys=True)
        self.model = initial_model(problem, training.seed).to(device)
        self.state = _State()
        self.checkpoints: dict[int, str] = {}  # hashes of the state dicts read, by step

    def train(self, progress: Progress | None, checkpoint_seconds: float) -> None:
        """Train from the start, or the checkpoint, to the last step to record."""
        training, state = self.training, self.state
        last = training.record_steps[-1]
        optimizer = make_optimizer(training, self.model)
        self._resume(optimizer)
        batches = datapoints.batches(self.data["train"], self._order(state.step, last))
        due = time.monotonic() + checkpoint_seconds
        while True:
            if state.step in training.record_steps and state.step not in state.columns:
                self.record(state.step)
            if progress is not None:
                progress(state.step, last, "steps")
            if state.step == last:
                return
            if time.monotonic() >= due:
                begin = time.monotonic()
                self._checkpoint(optimizer)
                end = time.monotonic()
                due = end + max(checkpoint_seconds, (end - begin) / CHECKPOINT_SHARE)
            state.step += 1
            _seed(training.seed, "training", state.step)
            loss = self._update(optimizer, to_device(next(batches), self.device))
            if not math.isfinite(loss):
                raise TrainingError(
                    f"The training loss is {loss} at step {state.step}; lower training.lr (now "
                    f"{training.lr}), or look at the problem's data and loss."
                )

    def read_checkpoints(self, progress: Progress | None) -> None:
        """Record the state dicts of a training done elsewhere."""
        files = files_of(self.training, self.training.record_steps)
        for index, (step, path) in enumerate(files.items()):
            self.checkpoints[step] = recorded.file_hash(path)
            load_into(self.model, path)
            self.record(step)
            if progress is not None:
                progress(index + 1, len(files), "checkpoints")

    def record(self, step: int) -> None:
        """Take a column, and log the losses and accuracies of all splits."""
        entry: dict[str, Any] = {"step": step}
        for split, dataset in self.data.items():
            entry[split] = figures = self._evaluate(split, dataset)
            if not math.isfinite(figures["loss"]):
                elsewhere = self.training.checkpoints is not None
                lower = "" if elsewhere else f"lower training.lr (now {self.training.lr}), or "
                raise TrainingError(
                    f"The {split} loss is {figures['loss']} at step {step}; {lower}look at the "
                    "problem's data and loss."
                )
        self.state.columns[step] = recorded.column(self.model)
        self.state.log.append(entry)
        recorded.write_log(self.run.log, self.state.log)

    def _order(self, start: int, stop: int) -> Iterator[Tensor]:
        """The sample indices of the batches of steps start + 1 … stop: shuffled epochs.

        What is left of an epoch beyond its last full batch is dropped.
        """
        size, batch = datapoints.count(self.data["train"], "train"), self.training.batch_size
        per_epoch = size // batch
        if per_epoch == 0:
            raise ConfigError(
                f"training.batch_size is {batch}, but the train split has only {size} samples."
            )
        for epoch in range(start // per_epoch, -(-stop // per_epoch)):
            shuffled = stream(self.training.seed, "data", epoch).permutation(size)
            whole = torch.from_numpy(shuffled)[: per_epoch * batch].view(per_epoch, batch)
            begin = epoch * per_epoch
            yield from whole[max(start - begin, 0) : stop - begin]

    def _update(self, optimizer: torch.optim.Optimizer, batch: Any) -> float:
        """One optimizer step; the loss before it."""

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self._loss(batch)
            loss.backward()
            return loss

        self.model.train()
        return float(optimizer.step(closure).detach())

    def _loss(self, batch: Any) -> Tensor:
        loss = self.problem.loss_fn(self.model, batch)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else loss
            raise ConfigError(
                f"The problem's loss_fn returned {found}; it must return a scalar mean."
            )
        return loss

    def _evaluate(self, split: str, dataset: Any) -> dict[str, float]:
        """The mean loss over a split in eval mode, and the accuracy of a classifier.

        With `training.eval_samples`, of as many of its samples, evenly spaced.
        """
        self.model.eval()
        outputs: list[Any] = []
        hook = self.model.register_forward_hook(lambda *call: outputs.append(call[-1]))
        weight_of = self.problem.batch_weight or count_examples
        total = weights = hits = judged = 0.0
        size = datapoints.count(dataset, split)
        judging = min(size, self.training.eval_samples or size)
        indices = torch.arange(judging, device="cpu") * size // max(judging, 1)
        for on_cpu in datapoints.batches(dataset, indices.split(self.training.batch_size)):
            batch = to_device(on_cpu, self.device)
            outputs.clear()
            weight = float(weight_of(batch))
            total += weight * float(self._loss(batch).detach())  # it may take derivatives itself
            weights += weight
            correct = _correct(outputs, batch)
            if correct is not None:
                hits += float(correct.sum())
                judged += len(correct)
        hook.remove()
        figures = {"loss": total / weights if weights else math.nan}
        return figures | ({"accuracy": hits / judged} if judged else {})

    def _checkpoint(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the whole state, so that it can be loaded with weights_only."""
        state = {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "threads": torch.get_num_threads(),
            "step": self.state.step,
            "log": self.state.log,
            "columns": {step: asdict(column) for step, column in self.state.columns.items()},
        }
        recorded.write_checkpoint(self.run.checkpoint, state)

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        """Take over the checkpoint, if there is one of this training."""
        if not self.run.checkpoint.exists():
            return
        saved = recorded.load_checkpoint(self.run.checkpoint)
        if difference(json.loads(saved["identity"]), json.loads(self.identity)):
            return
        torch.set_num_threads(saved["threads"])  # they decide the last bits
        self.model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        self.state.step = saved["step"]
        self.state.log = saved["log"]
        self.state.columns = {step: Column(**parts) for step, parts in saved["columns"].items()}


def initial_model(problem: Problem, seed: int) -> nn.Module:
    """The network before its first step, a function of the training's seed."""
    _seed(seed, "training", 0)
    return build_model(problem)


def _seed(seed: int, role: str, step: int) -> None:
    """Make what a step draws a function of (seed, role, step)."""
    torch.manual_seed(int(stream(seed, role, step, 0).integers(2**63)))


def make_optimizer(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a config names."""
    classes = {
        name: value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }
    if training.optimizer not in classes:
        raise ConfigError(unknown("optimizer", training.optimizer, classes))
    kind = classes[training.optimizer]
    # PyTorch wraps these methods for its compiler, whose import takes as long as PyTorch's own.
    methods = {name: unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad")}
    lean = type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(unwrap(kind.step))})
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        optimizer: torch.optim.Optimizer = lean(
            parameters, lr=training.lr, **training.optimizer_options
        )
        return optimizer
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"training.optimizer_options do not fit {training.optimizer}: {error}."
        ) from error


def _correct(outputs: Iterable[Any], batch: Any) -> Tensor | None:
    """Whether each sample is classified rightly; None where this is no classification.

    It is one if the batch is (inputs, integer labels (n,)) and the network's only output logits
    (n, classes).
    """
    labels = batch[1] if isinstance(batch, tuple) and len(batch) == 2 else None
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        return None
    logits = list(outputs)
    if len(logits) != 1 or not isinstance(logits[0], Tensor):
        return None
    if logits[0].ndim != 2 or len(logits[0]) != len(labels):
        return None
    return logits[0].argmax(dim=1) == labels


if __name__ == "__main__":
    main("train")
