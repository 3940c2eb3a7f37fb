"""A sweep: which runs it makes, what they share, and that each is the run it would be alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_type_hints

import pytest

from skerch.jobs.commands.sweep import LISTS, plan
from skerch.jobs.config import identity
from skerch.jobs.config.schema import Config
from skerch.jobs.run_dir import RunDir

FEW = ["training.record_steps=[60]", "sketch.probes=8", "sketch.rounds=1"]
FOLDER = Path("runs", "digits-sweep")


@pytest.fixture
def sweep(tmp_path, monkeypatch, skerch, small_overrides):
    """A function that sweeps the small experiment in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *given: skerch("sweep", "digits", *small_overrides, *FEW, *given)


@pytest.fixture
def planned(tmp_path, monkeypatch, small_overrides):
    """A function that plans it."""
    monkeypatch.chdir(tmp_path)
    return lambda *given: plan("digits", [*small_overrides, *FEW, *given], submit=False)


def named(sweep):
    """The directory and the method of each run."""
    return [(member.run, member.name) for member, _ in sweep.runs]


def test_a_swept_run_is_to_the_byte_the_run_alone(sweep, skerch, small_overrides, results_of):
    assert sweep("training.seed=[1,2]")[0] == 0
    alone = [*small_overrides, *FEW, "training.seed=2", "run_dir=alone"]
    assert skerch("run", "digits", *alone)[0] == 0
    swept, own = results_of(FOLDER / "training.seed=2"), results_of("alone")
    assert len(own) == 4
    assert swept == own
    assert results_of(FOLDER / "training.seed=1") != own


def test_runs_that_differ_after_the_training_share_it(sweep, skerch, small_overrides):
    methods = "method=[seigh,lanczos]"
    assert sweep(methods, "sketch.outer=[10,20]", "lanczos.k=3", "lanczos.tol=0.01")[0] == 0
    run = RunDir(FOLDER / "digits")
    assert run.methods == ["lanczos", "seigh-sketch.outer-10", "seigh-sketch.outer-20"]
    assert run.task_records.read_text().count('"train"') == 2  # its id and its stage
    alone = [*small_overrides, *FEW, "sketch.outer=10", "run_dir=alone"]
    assert skerch("run", "digits", *alone)[0] == 0
    for name in ("merged.h5", "eigh.h5", "overlap.json"):
        paths = RunDir("alone").method("seigh"), run.method("seigh-sketch.outer-10")
        one, other = (path / "step-000060-test" / name for path in paths)
        assert one.read_bytes() == other.read_bytes()


def test_doing_it_again_resumes_and_further_values_are_added(sweep, skerch):
    assert sweep("training.seed=[1]")[0] == 0
    (before,) = FOLDER.glob("*/training/parameters.h5")
    when = before.stat().st_mtime_ns
    status, said, _ = sweep("training.seed=[2,1]")
    assert status == 0
    assert before.stat().st_mtime_ns == when
    assert "[2/2] training.seed=1\n8 of 8 tasks are done" in said
    rows = json.loads(skerch("results", FOLDER, "--json")[1])
    assert [row["training.seed"] for row in rows] == [1, 2]
    assert all(row["eigenvalue_1"] > 0 for row in rows)
    assert skerch("results", FOLDER)[1] in said
    assert "training.seed=1" in (FOLDER / "report.html").read_text()
    assert skerch("report", FOLDER)[1] == f"{(FOLDER / 'report.html').absolute()}\n"
    assert skerch("sweep", FOLDER / "training.seed=1", "training.lr=[1,2]", f"run_dir={FOLDER}")[
        2
    ].startswith(f"error: {FOLDER.absolute()} is a sweep of training.seed; set another run_dir")


def test_a_run_that_fails_does_not_stop_the_others(sweep, skerch):
    status, said, _ = sweep("training.lr=[1e30,0.3]")
    assert status == 1
    assert "missing  1 of 2 Hessians; see: python -m skerch status runs/digits-sweep\n" in said
    assert "0.3" in said
    status, said, _ = skerch("status", FOLDER, "--exit-code")
    assert status == 4
    assert "failed: The training has diverged: at step 60 the test" in said
    assert skerch("status", FOLDER / "training.lr=0.3", "--exit-code")[0] == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["cluster=nope", "--submit"], "error: cluster=nope: there is no such file in "),
        (["problem.nope=3"], "error: There is no key problem.nope, nor any other."),
    ],
)
def test_a_mistake_is_said_once_before_any_run(sweep, given, words):
    status, said, error = sweep("training.seed=[1,2]", *given)
    assert (status, said, error.count("error: ")) == (2, "", 1)
    assert error.startswith(words)
    assert not FOLDER.exists()


def test_a_dry_run_changes_nothing(sweep):
    status, said, _ = sweep("training.seed=[1,2]", "hessian.curvature=[hessian,ggn]", "--dry-run")
    assert status == 0
    assert said.splitlines()[1] == (
        "runs/digits-sweep/training.seed=1: seigh-ggn, 8 of 8 tasks to do"
    )
    assert len(said.splitlines()) == 4
    assert not FOLDER.exists()


def test_runs_of_one_directory_have_one_training(planned):
    swept = planned(
        "training.optimizer_options.momentum=[0.5,0.9]",
        "hessian.splits=[[test],[train,test]]",
        "hessian.datapoints=[50,100]",
        "hessian.dtype=[float32,float64]",
        "method=[trace,density]",
        "trace.products=[20,30]",
    )
    trainings = {}
    for member, config in swept.runs:
        trained = identity(config, "training") | {"splits": config.hessian.splits}
        assert trainings.setdefault(member.run, trained) == trained
    assert len(trainings) == 8
    assert len(set(named(swept))) == len(swept.runs) == 8 * 2 * (2 + 1)
    assert ("trace-hessian.dtype-float64-trace.products-20") in {name for _, name in named(swept)}


@pytest.mark.parametrize(
    ("given", "run", "name"),
    [
        ("training.lr=[1e-5,0.3]", "training.lr=1e-05", "seigh"),
        ("training.record_steps=[[0,60],[60]]", "training.record_steps=0-60", "seigh"),
        ("hessian.splits=[[train],[test]]", "hessian.splits=train", "seigh"),
        ("sketch.rounds=[1,[20,20]]", "digits", "seigh-sketch.rounds-1"),
        ("masks.mine=[a/b.npy,null]", "digits", "seigh-masks.mine-a-b.npy"),
        ("hessian.batch_size=[null,50]", "digits", "seigh-hessian.batch_size-null"),
        ("hessian.curvature=[ggn,hessian]", "digits", "seigh-ggn"),
        ("problem.download=[true,false]", "problem.download=true", "seigh"),
    ],
)
def test_folders_are_named_by_the_values(planned, given, run, name):
    Path("a").mkdir()
    Path("a", "b.npy").touch()
    member, config = planned(given).runs[0]
    assert (member.run, member.name[: len(name)]) == (run, name)
    assert Path(config.run_dir) == FOLDER.absolute() / run
    assert config.name == member.name


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("training.lrr=[0.1,0.2]", "There is no key training.lrr; did you mean training.lr?"),
        ("trainin.lr=[0.1,0.2]", "There is no key trainin"),
        ("training.lr=[]", "training.lr=[] has no value to sweep; give some, or leave it out."),
        ("training.lr=[0.1,1e-1]", "training.lr has 0.1 twice; give each value once."),
        ("training.lr=[0.1,-1]", "training.lr is -1.0; it must be above 0"),
        ("training.lr=0.1", "There is nothing to sweep: give a list of values, as in"),
        ("training.record_steps=[0,60]", "a list of lists."),
        ("lanczos.k=[1,2]", "lanczos.k is no setting of method seigh; leave it out."),
        ("launcher.threads=[1,2]", "launcher.threads expects a whole number or null, not [1, 2]."),
        ("run_dir=[a,b]", "run_dir expects text, not ['a', 'b']."),
        (
            "hessian.param_filter=[['*.weight'],['?.weight']]",
            "hessian.param_filter=.weight and hessian.param_filter=.weight would both be in "
            "digits/seigh-hessian.param_filter-.weight; sweep them apart, each with a run_dir",
        ),
    ],
)
def test_what_cannot_be_swept_is_said_in_a_sentence(sweep, given, words):
    status, _, said = sweep(given)
    assert status == 2
    assert words in said
    assert not Path("runs").exists()


def test_a_sweep_is_not_put_into_a_run(reference, skerch):
    status, _, said = skerch(
        "sweep", reference.run_dir, "sketch.seed=[1,2]", f"run_dir={reference.run_dir}"
    )
    assert status == 2
    assert "is a run directory; set another run_dir for the sweep." in said


def test_further_values_are_not_mixed_with_other_settings(sweep):
    assert sweep("training.seed=[1]")[0] == 0
    status, _, said = sweep("training.seed=[2]", "training.lr=0.2", "launcher.blocks_per_task=4")
    assert status == 2
    assert "has runs of other settings (training.lr: 0.3 -> 0.2); take the old values back" in said
    assert not (FOLDER / "training.seed=2").exists()
    shutil.rmtree(FOLDER / "training.seed=1")  # begin anew
    assert sweep("training.seed=[1]", "training.lr=0.2")[0] == 0


def test_a_damaged_list_of_runs_is_named(sweep, skerch):
    assert sweep("training.seed=[1]")[0] == 0
    (FOLDER / "sweep.json").write_text("{")
    status, _, said = skerch("status", FOLDER)
    assert status == 1
    assert "sweep.json is damaged; delete it, and the same sweep again writes it anew." in said


def test_the_keys_that_are_lists_are_known():
    found = {
        f"{section}.{key}"
        for section, hint in get_type_hints(Config).items()
        if hasattr(hint, "__dataclass_fields__")
        for key, kind in get_type_hints(hint).items()
        if "list[" in str(kind)
    }
    assert found | {"sketch.rounds"} == {*LISTS}
