"""Training: resumed to the same bits, recorded exactly, and independent of data afterwards."""

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from skerch.errors import SkerchError
from skerch.files import FileError
from skerch.jobs import config as configs
from skerch.jobs.config.schema import Training
from skerch.jobs.errors import ConfigError
from skerch.jobs.problems import Problem, load_problem
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir import training_files as recorded
from skerch.jobs.run_dir.binding import bind
from skerch.jobs.run_dir.training_files import (
    RecordedError,
    load_hessian_data,
    load_model,
    load_parameters,
)
from skerch.jobs.training import session as stage
from skerch.jobs.training.session import TrainingError, train
from skerch.randomness import stream

SMALL = [
    "training.max_steps=30",
    "training.record_steps=[0,10,30]",
    "training.lr=0.3",
    "hessian.datapoints=100",
]


class Triples(Dataset):
    """Dict samples, noisy each time they are read, of a linear function."""

    def __init__(self, n: int):
        x = torch.linspace(-1, 1, 3 * n).view(n, 3)
        self.x, self.y = x, x.sum(1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[i] + 0.01 * torch.randn(3), "y": self.y[i]}


def noisy(fail_at: int = 0) -> Problem:
    """Dropout, batch norm, random samples, and on demand a kill at the nth loss."""
    calls = 0

    def loss_fn(model, batch):
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise KeyboardInterrupt
        return (model(batch["x"])[:, 0] - batch["y"]).square().mean()

    def model():
        return nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 1)
        )

    return Problem(model, lambda split: Triples(50 if split == "train" else 20), loss_fn)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Binds a run directory of a name to the digits with overrides; (run, config)."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, *overrides: str):
        config = configs.load("digits", [f"run_dir={name}", *SMALL, *overrides])
        run = RunDir(config.run_dir)
        bind(run, config)
        return run, config

    return make


NOISY = [
    "hessian.subset=first",
    "hessian.datapoints=10",
    "training.batch_size=8",
    "training.optimizer=Adam",
    "training.lr=0.01",
]


@pytest.mark.parametrize("fail_at", [3, 33, 47, 84])
def test_a_killed_training_goes_on_to_the_same_bits(fail_at, start, monkeypatch):
    """Killed in the first evaluation, within an epoch of six steps, in the second evaluation, and
    after it. (An evaluation takes twelve losses, a step one, and a checkpoint two.)"""
    monkeypatch.setattr(stage, "CHECKPOINT_SHARE", math.inf)
    runs = {}
    for name, problem in (("whole", noisy()), ("killed", noisy(fail_at))):
        runs[name], config = start(name, *NOISY)
        monkeypatch.setattr(stage, "load_problem", lambda *_, problem=problem: problem)
        if name == "killed":
            with pytest.raises(KeyboardInterrupt):
                train(runs[name], config, checkpoint_seconds=0)
        train(runs[name], config, checkpoint_seconds=0)
    whole, killed = runs["whole"], runs["killed"]
    for step in (0, 10, 30):
        assert torch.equal(load_parameters(whole, step), load_parameters(killed, step))
        states = [load_model(run, noisy(), step).state_dict() for run in (whole, killed)]
        assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    assert whole.log.read_text() == killed.log.read_text()


def test_the_resumed_training_does_not_start_over_nor_go_on_with_another_loss(start, monkeypatch):
    monkeypatch.setattr(stage, "CHECKPOINT_SHARE", math.inf)
    run, config = start("run", *NOISY)
    monkeypatch.setattr(stage, "load_problem", lambda *_: noisy(84))
    with pytest.raises(KeyboardInterrupt):
        train(run, config, checkpoint_seconds=0)
    edited = replace(noisy(), loss_fn=lambda *call: 1.01 * noisy().loss_fn(*call))
    monkeypatch.setattr(stage, "load_problem", lambda *_: edited)
    with pytest.raises(TrainingError, match=r"no longer that of the training.*\(step 19, split"):
        train(run, config)
    steps = []
    monkeypatch.setattr(stage, "load_problem", lambda *_: noisy())
    train(run, config, progress=lambda done, total, text: steps.append(done))
    assert steps[0] == 19
    assert steps[-1] == 30


@pytest.mark.parametrize(("time_limit", "writing"), [(45, 0.1), (45, 4), (1800, 30)])
def test_a_training_loses_a_tenth_of_a_time_limit(start, monkeypatch, time_limit, writing):
    """And what writing takes and a step, which is a second, on a clock of the test's own."""
    now = 1000.0
    written = [now]

    def checkpoint(session):
        nonlocal now
        now += writing
        written.append(now)

    def update(session, *_):
        nonlocal now
        now += 1
        return 1.0

    monkeypatch.setattr(stage, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(stage._Session, "_checkpoint", checkpoint)
    monkeypatch.setattr(stage._Session, "_update", update)
    run, config = start(
        "run", f"training.max_steps={time_limit}", f"training.record_steps=[{time_limit}]"
    )
    train(run, config, time_limit=time_limit)
    in_time = [when for when in written if when <= 1000 + time_limit]
    lost = [b - a for a, b in itertools.pairwise([*in_time, 1000 + time_limit])]
    assert max(lost) <= time_limit / 10 + writing + 1
    assert len(in_time) * writing < 0.6 * time_limit


def test_a_training_goes_on_from_its_end(start, monkeypatch):
    monkeypatch.setattr(stage, "load_problem", lambda *_: noisy())
    run, config = start("run", *NOISY)
    train(run, config)
    steps = []
    _, config = start("run", *NOISY, "training.max_steps=40", "training.record_steps=[40]")
    train(run, config, progress=lambda done, total, text: steps.append(done))
    assert steps == list(range(30, 41))


@pytest.mark.parametrize(
    ("first", "fail_at"),
    [
        (["training.max_steps=10", "training.record_steps=[0,10]"], 5),
        (["training.record_steps=[0,30]"], 5),
        (["training.record_steps=[10]"], 5),
        (["hessian.splits=[train]"], 2),
        (["hessian.splits=[test]", "training.record_steps=[0]"], 5),
        (["training.record_steps=[0,30]"], 25),
    ],
)
def test_a_training_that_grows_and_is_killed_has_the_bits_of_one(
    first, fail_at, start, monkeypatch
):
    """Later steps, earlier ones, both, and a split; killed in it, or past the step that is new."""
    monkeypatch.setattr(stage, "CHECKPOINT_SHARE", math.inf)
    problems = iter([noisy(), noisy(), noisy(fail_at), noisy()])
    monkeypatch.setattr(stage, "load_problem", lambda *_: next(problems))
    whole, config = start("whole", *NOISY)
    train(whole, config)
    run, smaller = start("run", *NOISY, *first)
    train(run, smaller)
    log = run.log.read_text().splitlines()
    run, config = start("run", *NOISY)
    with pytest.raises(KeyboardInterrupt):
        train(run, config, checkpoint_seconds=0)
    recorded.check_log(run)
    train(run, config)
    descriptions = [recorded.describe(r) for r in (whole, run)]
    for key in ("steps", "datapoints", "identity", "parameters", "threads"):
        assert getattr(descriptions[0], key) == getattr(descriptions[1], key)
    for step in (0, 10, 30):
        assert recorded.load_column(whole, step).hash() == recorded.load_column(run, step).hash()
    recorded.check_hessian_data(run)
    entries = [json.loads(line) for line in run.log.read_text().splitlines()]
    logged = [(entry["step"], split) for entry in entries for split in entry if split != "step"]
    assert sorted(logged) == [(step, split) for step in (0, 10, 30) for split in ("test", "train")]
    assert set(log) < set(run.log.read_text().splitlines())


def test_fewer_steps_and_splits_leave_the_others(start):
    run, config = start("run")
    train(run, config)
    before = [path.read_bytes() for path in (run.parameters, run.hessian_data)]
    fewer = ["training.record_steps=[10]", "hessian.splits=[test]"]
    _, config = start("run", *fewer)
    train(run, config)
    assert [path.read_bytes() for path in (run.parameters, run.hessian_data)] == before
    run.hessian_data.unlink()
    train(run, config)
    assert [path.read_bytes() for path in (run.parameters, run.hessian_data)] == before


def test_other_data_cannot_be_added(start, monkeypatch):
    run, config = start("run", *NOISY, "hessian.splits=[test]")
    monkeypatch.setattr(stage, "load_problem", lambda *_: noisy())
    train(run, config)
    before = [path.read_bytes() for path in (run.parameters, run.hessian_data, run.log)]
    other = Problem(noisy().model, lambda split: Triples(60), noisy().loss_fn)
    monkeypatch.setattr(stage, "load_problem", lambda *_: other)
    for more in ("hessian.splits=[train]", "training.record_steps=[20]"):
        _, config = start("run", *NOISY, more)
        with pytest.raises(TrainingError, match=r"split test.* what is there stays\. Bring"):
            train(run, config)
        assert [p.read_bytes() for p in (run.parameters, run.hessian_data, run.log)] == before


def test_steps_of_another_training_are_seen_at_the_next_that_is_recorded(start, monkeypatch):
    run, config = start("run", *NOISY, "training.record_steps=[0,30]")
    problem = noisy()
    monkeypatch.setattr(stage, "load_problem", lambda *_: problem)
    train(run, config)
    before = run.parameters.read_bytes()

    def loss_fn(model, batch):  # in training mode alone it is another
        return (2 if model.training else 1) * noisy().loss_fn(model, batch)

    problem = Problem(problem.model, problem.data, loss_fn)
    _, config = start("run", *NOISY, "training.record_steps=[0,10]")
    with pytest.raises(TrainingError, match=r"step 30 are not those.* What is there stays"):
        train(run, config)
    assert run.parameters.read_bytes() == before


def test_further_steps_are_trained_with_the_threads_of_the_first(start):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run, config = start("run", "training.record_steps=[0]")
        train(run, config)
        torch.set_num_threads(1)
        train(*start("run", "training.record_steps=[10]"))
        assert (torch.get_num_threads(), recorded.describe(run).threads) == (2, 2)
    finally:
        torch.set_num_threads(threads)


def test_training_follows_the_published_recipe(start):
    """SGD by hand, from the recorded initialisation, on the batches of the seed's permutation."""
    run, config = start("run", "training.record_steps=[0,15]")
    train(run, config)
    problem = load_problem(config.problem)
    data = problem.data("train")
    model = load_model(run, problem, 0)
    order = torch.cat([
        torch.from_numpy(stream(12345, "data", epoch).permutation(1198))[:1100]
        for epoch in range(2)
    ])  # fmt: skip
    for step in range(15):
        x, y = (t[order[100 * step : 100 * (step + 1)]] for t in data.tensors)
        loss = nn.functional.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.3 * gradient
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(load_parameters(run, 15), expected, rtol=0, atol=1e-6)


def test_log_has_losses_and_accuracies_of_both_splits(start):
    run, config = start("run")
    train(run, config)
    entries = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [0, 10, 30]
    problem = load_problem(config.problem)
    model = load_model(run, problem, 30)
    for split in ("train", "test"):
        inputs, targets = problem.data(split).tensors
        logits = model(inputs)
        loss = nn.functional.cross_entropy(logits, targets).item()
        accuracy = (logits.argmax(1) == targets).double().mean().item()
        assert entries[-1][split]["loss"] == pytest.approx(loss, rel=1e-5)
        assert entries[-1][split]["accuracy"] == pytest.approx(accuracy)


def test_the_log_may_be_of_some_samples_evenly_spaced(start):
    run, config = start("run", "training.eval_samples=100", "training.record_steps=[30]")
    train(run, config)
    (entry,) = (json.loads(line) for line in run.log.read_text().splitlines())
    problem = load_problem(config.problem)
    inputs, targets = problem.data("test").tensors
    spaced = [599 * i // 100 for i in range(100)]
    loss = nn.functional.cross_entropy(
        load_model(run, problem, 30)(inputs[spaced]), targets[spaced]
    )
    assert entry["test"]["loss"] == pytest.approx(loss.item(), rel=1e-5)


OPTIMIZERS = sorted(
    {name for name, value in vars(torch.optim).items() if isinstance(value, type)}
    - {"Optimizer", "SparseAdam"}  # which wants sparse gradients
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_without_the_compiler_take_the_same_steps(name):
    def trained(make):
        torch.manual_seed(0)
        model, x = nn.Linear(5, 4, bias=False), torch.randn(7, 5)
        optimizer = make(model)

        def closure():
            optimizer.zero_grad()
            loss = model(x).tanh().square().mean()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return model.weight

    ours = trained(lambda m: stage.make_optimizer(Training(optimizer=name, lr=0.01), m))
    theirs = trained(lambda m: getattr(torch.optim, name)(m.parameters(), lr=0.01))
    assert torch.equal(ours, theirs)


def test_planning_and_training_import_neither_compiler_nor_plots():
    """Each of these takes as long as to import torch, or half of that."""
    program = (
        "import sys, torch; from skerch.jobs.commands import plan;"
        "from skerch.jobs.stages import train;"
        "from skerch.jobs.training.optimizer import make_optimizer as make;"
        "from skerch.jobs.config.schema import Training;"
        "w = torch.nn.Linear(1, 1); o = make(Training(), w); o.zero_grad();"
        "w(torch.ones(1, 1)).sum().backward(); o.step();"
        "assert not {'torch._dynamo', 'matplotlib', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_later_stages_need_no_dataset(start, monkeypatch):
    run, config = start("run")
    train(run, config)
    problem = load_problem(config.problem)
    inputs, targets = problem.data("test").tensors

    def refuse(split: str):
        raise AssertionError("touched the dataset")

    blind = Problem(problem.model, refuse, problem.loss_fn)
    x, y = load_hessian_data(run, "test")
    assert y.bincount().tolist() == [10] * 10
    chosen = [i for c in range(10) for i in (targets == c).nonzero()[:10, 0].tolist()]
    assert torch.equal(x, inputs[sorted(chosen)])
    assert torch.equal(y, targets[sorted(chosen)])
    model = load_model(run, blind, 30)
    assert not model.training
    assert torch.equal(
        torch.cat([p.flatten() for p in model.parameters()]), load_parameters(run, 30)
    )
    generic = torch.load(run.hessian_data, weights_only=True)
    assert set(generic) == {"train", "test"}


def test_what_is_there_is_not_made_again_and_what_is_missing_is(start, monkeypatch):
    run, config = start("run")
    train(run, config)
    parameters, batch = run.parameters.read_bytes(), load_hessian_data(run, "train")
    run.hessian_data.unlink()
    train(run, config)
    assert run.parameters.read_bytes() == parameters
    assert all(
        torch.equal(a, b) for a, b in zip(load_hessian_data(run, "train"), batch, strict=True)
    )
    monkeypatch.setattr(stage, "load_problem", lambda *_: pytest.fail("needed nothing"))
    train(run, config)


def test_parameters_of_another_training_are_refused(start):
    run, config = start("run")
    train(run, config)
    config.training.lr = 0.2
    with pytest.raises(TrainingError, match=r"training\.lr: 0\.3 -> 0\.2"):
        train(run, config)


def test_checkpoints_of_a_training_done_elsewhere_are_recorded(start, tmp_path):
    problem = load_problem({"name": "digits_mlp"})
    models = {step: problem.model() for step in (0, 7)}
    torch.save(models[0].state_dict(), "net_0.pt")
    state = {f"digits.{name}": value for name, value in models[7].state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, "net_7.pt")
    run, config = start("run", "training.checkpoints=net_*.pt", "training.record_steps=null")
    train(run, config)
    for step, model in models.items():
        expected = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert torch.equal(load_parameters(run, step), expected)


def test_state_dicts_that_come_later_are_added_and_those_that_are_gone_stay(start):
    network = load_problem({"name": "digits_mlp"}).model
    for step in (0, 7):
        torch.save(network().state_dict(), f"net_{step}.pt")
    all_of_them = ["training.checkpoints=net_*.pt", "training.record_steps=null"]
    run, config = start("run", *all_of_them)
    train(run, config)
    before = [recorded.load_column(run, step).hash() for step in (0, 7)]
    Path("net_0.pt").unlink()
    torch.save(network().state_dict(), "net_9.pt")
    config = configs.load(run.path, ["training.record_steps=null"])
    assert config.training.record_steps == [7, 9]
    bind(run, config)
    train(run, config)
    assert recorded.describe(run).steps == [0, 7, 9]
    assert [recorded.load_column(run, step).hash() for step in (0, 7)] == before
    torch.save(network().state_dict(), "net_9.pt")
    with pytest.raises(RecordedError, match=r"net_9\.pt has changed since"):
        start("run", *all_of_them)


def test_a_loss_that_is_not_finite_of_a_checkpoint_is_no_learning_rates_fault(start, monkeypatch):
    problem = load_problem({"name": "digits_mlp"})
    torch.save(problem.model().state_dict(), "net_4.pt")
    broken = Problem(problem.model, problem.data, lambda model, batch: model(batch[0]).sum() / 0)
    monkeypatch.setattr(stage, "load_problem", lambda *_: broken)
    run, config = start("run", "training.checkpoints=net_*.pt", "training.record_steps=null")
    with pytest.raises(TrainingError, match=r"train loss is (-?inf|nan) at step 4; look at the"):
        train(run, config)


def test_a_diverging_training_stops_at_its_step(start):
    run, config = start("run", "training.lr=1e38")
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) at step \d+; lower training\.lr"):
        train(run, config)
    assert not run.parameters.exists()


def test_parameters_that_are_not_finite_are_not_recorded_though_the_loss_is(start, monkeypatch):
    problem = load_problem({"name": "digits_mlp"})
    low = Problem(problem.model, problem.data, lambda model, _: model[-1].bias.sigmoid().sum() * 99)
    monkeypatch.setattr(stage, "load_problem", lambda *_: low)
    run, config = start("run", "training.lr=1e38", "training.record_steps=[30]")
    with pytest.raises(TrainingError, match=r"bias are not finite at step 30; lower training\.lr"):
        train(run, config)
    assert not run.parameters.exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.optimizer=Sgd", r"no optimizer Sgd; did you mean SGD\?"),
        ("training.optimizer_options={momentun: 1}", r"do not fit SGD: .*momentun"),
        ("training.batch_size=1199", r"batch_size is 1199, but the train split has only 1198"),
        ("hessian.datapoints=101", r"multiple of its 10 classes, at most"),
        ("hessian.datapoints=550", r"the test split .* 10 classes, at most 510 .* 51 samples"),
        ("hessian.splits=[validation]", r"train and test, not 'validation'"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_sentence(override, words, start):
    run, config = start("run", override)
    with pytest.raises(ConfigError, match=words):
        train(run, config)


def test_missing_and_changed_records_are_refused_by_name(start):
    run, config = start("run")
    problem = load_problem(config.problem)
    with pytest.raises(FileError, match=r"parameters\.h5 is missing"):
        load_model(run, problem, 0)
    train(run, config)
    with pytest.raises(
        RecordedError, match=r"no step 20; training\.record_steps was \[0, 10, 30\]"
    ):
        load_parameters(run, 20)
    with pytest.raises(RecordedError, match=r"no datapoints of split 'val', only of train, test"):
        load_hessian_data(run, "val")
    other = Problem(lambda: nn.Linear(2, 2), problem.data, problem.loss_fn)
    with pytest.raises(RecordedError, match=r"differ first in \['weight', \[2, 2\]\]"):
        load_model(run, other, 0)


def test_a_flipped_bit_is_refused_or_harmless(start, monkeypatch):
    """Bytes from all over the parameters, datapoints and checkpoint; never other data."""
    monkeypatch.setattr(stage, "CHECKPOINT_SHARE", math.inf)
    run, config = start("run", "hessian.datapoints=20", "hessian.splits=[test]")
    train(run, config, checkpoint_seconds=0)

    def checkpointed():
        saved = recorded.load_checkpoint(run.checkpoint)
        return [*saved["model"].values(), torch.tensor(saved["step"])]

    readers = {
        run.parameters: lambda: [load_parameters(run, 10)],
        run.hessian_data: lambda: list(load_hessian_data(run, "test")),
        run.checkpoint: checkpointed,
    }
    for path, read in readers.items():
        expected, content = read(), path.read_bytes()
        refused = 0
        for position in [*range(0, len(content), 97), *range(len(content) - 800, len(content), 3)]:
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            try:
                found = read()
            except SkerchError as error:
                refused += f"{path} is damaged" in str(error)
            else:
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert refused > len(content) // 97 // 3
        path.write_bytes(content)
