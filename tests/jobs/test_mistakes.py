"""Each mistake at the command line: an exit status, and a sentence with the way out."""

import sys

import pytest
import torch

from skerch.errors import SkerchError
from skerch.jobs.config import load
from skerch.jobs.stages.operator import resolve_device

PROBLEMS = """
import sys
from collections import namedtuple
import torch
from torch.utils.data import TensorDataset
from skerch.curvature.losses import hf_lm_loss
from skerch.jobs.problems import Problem

def make(factor=1.0, model=lambda: torch.nn.Linear(4, 1), data=None, loss=None):
    data = data or (lambda split: TensorDataset(torch.ones(50, 4), torch.arange(50.0)[:, None]))
    loss = loss or (lambda model, batch: factor * (model(batch[0]) - batch[1]).square().mean())
    return Problem(model, data, loss)

def dropout():
    def loss(model, batch):  # of all subsets another value
        return torch.dropout(model(batch[0]) * 2.0 ** -batch[1], 0.5, True).square().mean()

    return make(loss=loss)

def vector():
    return make(loss=lambda model, batch: model(batch[0])[:, 0])

def number():
    return make(loss=lambda model, batch: 0.5)

def uncalled():
    return make(loss=hf_lm_loss)

def a_list():
    return make(loss=[1.0])

def leaves():
    sys.exit()

def leaves_at_work():
    return make(loss=lambda model, batch: sys.exit())

def builds_nothing():
    return make(model=lambda: None)

def breaks():
    return make(model=lambda: {}["layer"])

def lazy():
    return make(model=lambda: torch.nn.LazyLinear(1))

Pair = namedtuple("Pair", "x y")

def own_type():
    return make(data=lambda split: [Pair(torch.ones(4), 1.0)] * 50)

def no_data():
    return make(data=lambda split: {}[split])

instance = type("Callable", (), {"__call__": lambda self, width: None})()
"""
EXPERIMENT = """
problem: {factory: "mine:make"}
training: {max_steps: 2, batch_size: 10, record_steps: [2]}
hessian: {datapoints: 20, subset: first, splits: [test]}
sketch: {outer: 1, inner: 4}
"""
BAD_CONFIGS = [
    ("sketch.outr=1", 2, "no key sketch.outr; did you mean sketch.outer?"),
    ("sketch.outer=many", 2, "sketch.outer expects a whole number, not 'many'"),
    ("sketch.outer=5", 2, "outer=5 eigenpairs cannot be had from inner=4 matvecs; 1 and 4"),
    ("sketch.inner=60", 2, "inner=60 matvecs are more than the dimension N=5; take inner ≤ 5"),
    ("sketch.probes=2000000000", 2, "sketch.probes is 2000000000; between 2 and 10000"),
    ("sketch={inner: 2000000000, block_size: 1}", 2, "sketch.inner=2000000000; in larger blocks"),
    ("training.record_steps=[0,3]", 2, "training.record_steps is [0, 3]; training.max_steps=2"),
    ("hessian.datapoints=51", 1, "hessian.datapoints is 51; the test split has only 50"),
    ("training.batch_size=51", 1, "training.batch_size is 51; the train split has only 50"),
    ("hessian.subset=balanced", 1, "no `targets`; hessian.subset=first"),
    ("hessian.strategy=fast", 2, "Unknown strategy 'fast'; choose auto, loop, batched, tape"),
    ("hessian.param_filter=bias2", 2, "The pattern 'bias2' matches no; weight, bias"),
    ("hessian.param_filter=[*,!*]", 2, "The patterns '*', '!*' leave no parameter; weight, bias"),
    ("problem.factory=mine:lazy", 2, "model(): The model's weight has no shape; build the network"),
    ("problem.factory=mine:own_type", 1, "samples of type Pair; give tuples or dicts of tensors"),
    ("training.optimizer=torch.optim.SGD", 2, "no optimizer torch.optim.SGD; did you mean SGD?"),
    ("training.lr=1e38", 1, "at step 2; lower training.lr (now 1e+38)"),
    ("problem.factor=.inf", 2, "problem holds what cannot be stored as JSON; finite numbers"),
    ("problem.factor=1e300", 1, "loss is inf at step 1; problem's data and loss"),
    ("problem.factr=1", 2, "no key problem.factr; did you mean problem.factor?"),
    ("problem.factory=yours:make", 2, "yours:make cannot be imported; No module named 'yours'"),
    ("problem.factory=mine:mak", 2, "mine.py has no function mak"),
    ("problem.factory=mine:dropout", 1, "loss of the same parameters; switch off dropout"),
    ("problem.factory=mine:vector", 1, "loss_fn returned a tensor of shape (10,); scalar mean"),
    ("problem.factory=mine:number", 1, "loss_fn returned 0.5; it must return a scalar mean"),
    ("problem.factory=mine:uncalled", 2, "loss_fn hf_lm_loss does not take; hf_lm_loss(…)"),
    ("problem.factory=mine:a_list", 2, "loss_fn [1.0] does not take (model, batch)"),
    ("problem.factory=mine:leaves", 2, "problem failed: SystemExit; mine.py:"),
    ("problem.factory=mine:builds_nothing", 2, "model() returned a NoneType; torch.nn.Module"),
    ("problem.factory=mine:breaks", 2, "model() failed: KeyError: 'layer'; mine.py:"),
    ("problem.factory=mine:no_data", 1, "data('train') failed: KeyError: 'train'; mine.py:"),
    ("problem.factory=mine:instance", 2, "problem.width is missing"),
    ("problem.factory=builtins:type", 2, "problem.factory: the arguments; a function of"),
    ("launcher.threads=100000", 2, "launcher.threads is 100000; between 1 and 1024"),
    ("launcher.workers=100000", 2, "launcher.workers is 100000; between 1 and 1024"),
    ("launcher.device=cuda:9", 2, "launcher.device=cuda:9, but PyTorch sees; set it to"),
    ("launcher.name=cloud", 2, "launcher.name is 'cloud'; it must be one of auto, local"),
    ("name=config.yaml", 2, "name is 'config.yaml'; choose another"),
    (f"run_dir={'a/' * 2000}", 2, "run_dir has a name; 3500 in all; choose a shorter one"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with an experiment that works and problems that do not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(PROBLEMS)
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)
    yield tmp_path
    sys.modules.pop("mine", None)


def test_without_a_mistake_it_runs(folder, skerch):
    status, _, err = skerch("run", "mine.yaml")
    assert (status, err) == (0, "")


@pytest.mark.parametrize(("override", "status", "words"), BAD_CONFIGS)
def test_a_bad_config_is_one_sentence_with_the_way_out(override, status, words, folder, skerch):
    found, out, err = skerch("run", "mine.yaml", override)
    assert found == status
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    for part in words.split("; "):
        assert part in sentence
    assert "traceback" not in (out + err).lower()


def test_a_loss_that_ends_the_program_only_fails_its_task(folder, skerch):
    status, _, err = skerch("run", "mine.yaml", "problem.factory=mine:leaves_at_work")
    assert status == 1
    assert "train: SystemExit" in err


def test_check_says_what_makes_a_model_unfit(folder, skerch):
    cases = [("make", 0, "the same twice"), ("dropout", 1, "switch off dropout")]
    for name, status, words in cases:
        found, out, _ = skerch("check", "mine.yaml", f"problem.factory=mine:{name}")
        assert found == status
        assert words in " ".join(out.split())


def test_a_path_that_cannot_be_is_one_sentence(skerch, tmp_path):
    status, _, err = skerch("status", tmp_path / ("a" * 300))
    assert status == 2
    assert "is no run directory" in err


def test_a_device_beyond_those_of_the_machine_is_one_sentence(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("cuda", "cuda:0"):
        assert resolve_device(load("mine.yaml", [f"launcher.device={name}"])).type == "cuda"
    for name in ("cuda:1", "cuda:99999999999"):
        with pytest.raises(SkerchError, match=f"{name}, but PyTorch sees 1 CUDA .*cuda:0"):
            resolve_device(load("mine.yaml", [f"launcher.device={name}"]))
