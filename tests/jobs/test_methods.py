"""A method of a row and modules of its own, through what takes any method."""

import json
import sys
from types import SimpleNamespace

import pytest

from skerch.jobs.commands.plan import Plan
from skerch.jobs.config.methods import METHODS, Method
from skerch.jobs.config.stages import STAGES, Stage
from skerch.jobs.launchers.slurm.task import _stuck
from skerch.jobs.pipeline import Task
from skerch.jobs.run_dir import RunDir

OPTIONS = ["method=toy", "training.max_steps=20", "training.record_steps=[0,20]"]


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A method that measures nothing and has no manifests: one stage, which writes step.json."""

    def hessian_tasks(config, run, step, split):
        where = {"name": "toy", "step": step, "split": split}
        path = run.step(**where).path
        yield Task(f"toy.{path.name}.note", "note", where, (path / "step.json",), ("train",))

    def damage(directory, outputs):
        return (
            f"{path} is damaged" for path in outputs if path.exists() and not path.stat().st_size
        )

    def run(context):
        context.directory.path.mkdir()
        (context.directory.path / "step.json").write_text(str(context.step))

    modules = {
        "pipeline.toy": {"check": lambda config, N: None, "hessian_tasks": hessian_tasks}
        | {"damage": damage},
        "stages.note": {"run": run},
        "commands.toy": {},
        "commands.toy.plan": {
            "calibrate": lambda config: (1.0, None),
            "plan": lambda *_: Plan([], []),
        },
        "commands.toy.results": {
            "read": lambda path: int(path.read_text()),
            "title": lambda config: "notes",
            "tables": lambda config, hessians: [],
            "lines": lambda run, config, hessians: [f"steps {sorted({*hessians.values()})}"],
            "row": lambda directory, config, results: {"noted": results},
        },
    }
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, f"skerch.jobs.{name}", SimpleNamespace(**content))
    monkeypatch.setitem(METHODS, "toy", Method("toy", "toy", ("hessian",), "step.json"))
    monkeypatch.setitem(STAGES, "note", Stage("note", resumes="note", result=True))
    monkeypatch.chdir(tmp_path)
    return RunDir("runs/digits")


def test_a_stage_that_resumes_and_gets_no_further_is_told_of(toy):
    told = _stuck(toy, Task("toy.note", "note", {}, (), ()), [])
    assert told.startswith("toy.note wrote no note from one time limit to the next")


def test_a_plan_tells_of_no_sketch_where_none_is_made(toy, skerch):
    status, out, err = skerch("plan", "digits", *OPTIONS, "sketch.outer=2000", "--calibrate")
    assert (status, err) == (0, "")
    assert "files" in out
    assert "matvec" not in out
    assert "disk" not in out


def test_only_a_sketched_hessian_is_compared_with_the_exact_one(toy, skerch):
    status, _, err = skerch("exhaustive", "digits", *OPTIONS)
    assert (status, toy.path.exists()) == (2, False)
    assert "method=toy" in err


def test_a_method_without_manifests_runs_and_runs_again(toy, skerch):
    for said in ("[5/5] toy.step-000020-test.note", "5 of 5 tasks are done"):
        status, out, err = skerch("run", "digits", *OPTIONS)
        assert (status, err) == (0, "")
        assert said in out
        assert out.count("\ntoy: notes\n") == 1
        assert "steps [0, 20]" in out
        assert "missing" not in out
    assert skerch("run", "digits", *OPTIONS, "hessian.splits=[test]")[0] == 0
    counts = json.loads(skerch("status", toy.path, "--json")[1])["methods"][0]["stages"]["note"]
    assert counts["tasks"] == counts["done"] == 4
    assert skerch("status", toy.path, "--verify")[0] == 0
    (toy.step("toy", 20, "test").path / "step.json").write_text("")
    assert "step.json is damaged" in skerch("status", toy.path, "--verify")[1]
    refused = skerch("run", "digits", *OPTIONS, "hessian.dtype=float64")[2]
    assert "dtype: float32 -> float64" in refused
    assert "name=toy-2" in refused
