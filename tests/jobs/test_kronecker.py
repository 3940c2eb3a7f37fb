"""Kronecker-factored methods: as the library has them, by parts, killed, refused, loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields

import pytest
import torch

import skerch as package
from skerch.jobs import pipeline
from skerch.jobs.commands.kronecker import calibrate
from skerch.jobs.commands.kronecker.plan import bytes_of, layers_of
from skerch.jobs.config import ConfigError, load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.binding import bind
from skerch.kronecker import files, sums
from skerch.kronecker.fit import kronecker

METHODS = ("kfac", "ekfac", "tkfac", "shampoo", "nearest", "autocorrelation")
SMALL = ["kronecker.part_size=30", "kronecker.iterations=2", "kronecker.project=40"]
SMALL += ["hessian.dtype=float64", "training.record_steps=[60]"]
MC = ["method=ekfac", "name=mc", "kronecker.fisher=mc", "kronecker.samples=2"]
SKETCHED = ["method=ekfac", "kronecker.factor_eigh=sketched"]
RUNS = {
    **{method: [f"method={method}"] for method in METHODS},
    "mc": MC,
    "empirical": ["method=kfac", "name=empirical", "kronecker.fisher=empirical"],
    "rank": [*SKETCHED, "name=rank", "kronecker.rank=5"],
    "tol": [*SKETCHED, "name=tol", "kronecker.tol=0.05"],
}
ROWS = """
from dataclasses import replace
from torch import nn
from skerch.jobs.problems import load_problem

def network():
    return nn.Sequential(
        nn.Unflatten(1, (8, 8)), nn.Linear(8, 4), nn.Tanh(), nn.Flatten(), nn.Linear(32, 10)
    )

def make():
    return replace(load_problem({"name": "digits_mlp"}), model=network)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_overrides):
    """The digits with all methods."""
    directory = tmp_path_factory.mktemp("kronecker") / "run"
    for own in RUNS.values():
        asked = [*small_overrides, *SMALL, *own, f"run_dir={directory}"]
        assert not complete(load("digits", asked))
    return RunDir(directory)


@pytest.fixture
def trained(run, tmp_path):
    """The folder of another run of the same training."""
    shutil.copytree(run.training, tmp_path / "run" / "training")
    return tmp_path / "run"


def contents(run, name):
    """The bytes of a method's files, by name."""
    return {
        str(path.relative_to(run.method(name))): path.read_bytes()
        for path in run.method(name).rglob("step-*/*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_what_the_library_finds_in_one_call(run, name):
    found = package.load(run.path, name)[60, "test"]
    asked, method = found.context.config.kronecker, found.context.config.method
    direct = kronecker(
        found.operator(),
        method,
        iterations=asked.iterations if method == "nearest" else None,
        project=asked.project if method == "autocorrelation" else None,
        factor_eigh=asked.factor_eigh,
        rank=asked.rank,
        tol=asked.tol,
        seed=asked.seed,
    )
    ours = found.approximation()
    eye = torch.eye(ours.size, dtype=torch.float64)
    expected = direct @ eye
    assert torch.dist(ours @ eye, expected) <= 1e-12 * expected.norm()
    assert ours.trace() == pytest.approx(found.results.trace, rel=1e-12)
    dense, results = found.operator() @ eye, found.results
    trace = results.exact_trace
    assert abs(float(dense.trace()) - trace.value) <= 1.5 * trace.error
    assert len(found.factors()) == len(results.layers) == len(results.layer_errors) == 3
    assert results.error.value < results.whole_error.value
    assert all(0 < change < 1 for change in results.changes)
    assert len(results.changes) == (3 if name == "nearest" else 0)


def test_sketched_bases_are_narrower(run):
    for name, widest in (("rank", 6), ("tol", 9)):
        first = package.load(run.path, name)[60, "test"].approximation().blocks[0]
        assert first.A.values.shape[-1] <= widest < first.layer.shape[2]


def test_whole_blocks_are_those_of_the_fisher_matrix(trained, small_overrides):
    asked = [*small_overrides, *SMALL, "kronecker.project=null", "method=autocorrelation"]
    assert not complete(load("digits", [*asked, f"run_dir={trained}"]))
    results = package.load(trained)[60, "test"].results
    assert max(max(errors) for errors in results.layer_errors) < 1e-10
    assert max(results.errors) < 1e-10
    assert min(results.whole_errors) > 0.1


def test_shared_weights_are_reduced(tmp_path, monkeypatch, small_overrides):
    (tmp_path / "rows.py").write_text(ROWS)
    (tmp_path / "rows.yaml").write_text("problem: {factory: 'rows:make'}")
    monkeypatch.chdir(tmp_path)
    asked = [*small_overrides, *SMALL, "method=kfac", "kronecker.sharing=reduce"]
    config = load("rows.yaml", [*asked, "training.max_steps=1", "training.record_steps=[1]"])
    assert not complete(config)
    found = package.load(config.run_dir)[1, "test"]
    eye = torch.eye(found.approximation().size, dtype=torch.float64)
    reduced, expanded = (
        kronecker(found.operator(), "kfac", sharing=sharing) @ eye
        for sharing in ("reduce", "expand")
    )
    ours = found.approximation() @ eye
    assert torch.dist(ours, reduced) <= 1e-12 * reduced.norm() < 1e-3 * torch.dist(ours, expanded)


def test_more_outputs_than_backward_passes_are_refused(trained, small_overrides, monkeypatch):
    monkeypatch.setattr(sums, "MOST_SCORES", 9)
    asked = [*small_overrides, *SMALL, "method=kfac", f"run_dir={trained}"]
    words = complete(load("digits", asked)).values()
    assert any("each of the 10 outputs" in each and "fisher=mc" in each for each in words)


@pytest.mark.parametrize("options", [["launcher.workers=2"], ["launcher.blocks_per_task=1"]])
def test_workers_and_tasks_leave_the_same_bytes(run, trained, options, small_overrides):
    asked = [*small_overrides, *SMALL, *MC, f"run_dir={trained}"]
    assert not complete(load("digits", [*asked, *options]))
    assert contents(RunDir(trained), "mc") == contents(run, "mc")


@pytest.mark.parametrize("method", ["mc", "nearest"])
def test_batches_and_partitions_change_rounding_only(run, trained, method, small_overrides):
    asked = [*small_overrides, *SMALL, *RUNS[method], "hessian.batch_size=7"]
    assert not complete(load("digits", [*asked, "kronecker.partitions=2", f"run_dir={trained}"]))
    there, here = (
        package.load(path, method)[60, "test"].approximation() for path in (run.path, trained)
    )
    eye = torch.eye(there.size, dtype=torch.float64)
    expected = there @ eye
    assert torch.dist(here @ eye, expected) <= 1e-12 * expected.norm()


class Killed(BaseException):
    """As SIGKILL ends a process, between two files."""


@pytest.mark.parametrize("method", ["ekfac", "nearest"])
def test_a_run_that_is_killed_at_every_third_file_ends_with_the_same_bytes(
    run, trained, method, small_overrides, monkeypatch
):
    asked = [*small_overrides, *SMALL, f"method={method}", f"run_dir={trained}"]
    config = load("digits", [*asked, "launcher.blocks_per_task=3"])
    original, written, kills = files.write, [0], 0

    def write(*arguments):
        written[0] += 1
        if written[0] % 3 == 0:
            raise Killed
        original(*arguments)

    monkeypatch.setattr(files, "write", write)
    while pipeline.missing(pipeline.tasks(config)):
        try:
            assert not complete(config)
        except Killed:
            kills += 1
    assert kills == written[0] // 3 >= 5
    assert contents(RunDir(config.run_dir), method) == contents(run, method)


def test_files_that_are_deleted_are_made_again(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    copy = RunDir(tmp_path / "run")
    folder = copy.step("ekfac", 60, "test").path
    (folder / "eigenvalues.safetensors").unlink()
    (folder / "ekfac.json").unlink()
    assert not complete(copy.load("ekfac"))
    assert contents(copy, "ekfac") == contents(run, "ekfac")
    (folder / "factors.safetensors").unlink()  # a means, like the blocks of a sketch
    assert not pipeline.missing(pipeline.tasks(copy.load("ekfac")))


def test_nothing_partial_stays_and_damage_is_named(run, tmp_path, skerch):
    assert not list(run.path.rglob("partial"))
    shutil.copytree(run.path, tmp_path / "run")
    folder = RunDir(tmp_path / "run").step("ekfac", 60, "test").path
    assert skerch("status", tmp_path / "run", "--verify")[0] == 0
    for name in ("factors", "eigenbasis", "eigenvalues"):
        path = folder / f"{name}.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    (folder / "layers.json").write_text("{}")
    status, out, _ = skerch("status", tmp_path / "run", "--verify")
    assert status == 1
    for name in ("factors.safetensors", "eigenbasis.safetensors", "eigenvalues.safetensors"):
        assert f"{name} is damaged" in out
    assert "layers.json is damaged" in out


def test_a_plan_has_the_bytes_that_are_there(run, skerch):
    for method in METHODS:
        config = run.load(method)
        wanted = bytes_of(config, layers_of(config).covered)
        folder = run.step(method, 60, "test").path
        for name in ("factors", "eigenbasis", "eigenvalues"):
            path = folder / f"{name}.safetensors"
            there = files.read(path).layers.values() if path.exists() else ()
            found = sum(t.numel() * t.element_size() for each in there for t in each.values())
            assert found == getattr(wanted, name), (method, name)
    status, out, err = skerch("plan", "digits", "method=ekfac")
    assert (status, err) == (0, "")
    for words in ("partial sums", "disk: what stays", "memory   factors"):
        assert words in out


@pytest.mark.parametrize("name", ["ekfac", "autocorrelation", "mc"])
def test_a_plan_times_a_part_of_each_stage_here(run, name, monkeypatch):
    parts = []
    monkeypatch.setattr(
        calibrate, "sum_up", lambda op, *_: parts.append(op.dataloader) or sums.sum_up(op, *_)
    )
    found = calibrate.seconds(run.load(name))
    corrected = set() if name == "autocorrelation" else {"correction"}
    assert set(found) == {"factors", "eigenbasis"} | corrected
    assert all(seconds > 0 for seconds in found.values())
    ((batch,),) = {tuple(map(id, part)): part for part in parts}.values()
    assert len(getattr(batch, "batch", batch)[0]) == 30


def test_results_are_a_table_by_layer_and_name_what_is_left_out(run, skerch, small_overrides):
    out = skerch("results", run.path)[1]
    assert "20 x 65" in out
    rows = json.loads(skerch("results", run.path, "--json")[1])
    assert {row["name"] for row in rows} == {*RUNS}
    assert all(row["covered"] == row["parameters"] == 1930 for row in rows)
    asked = [*small_overrides, *SMALL, "method=kfac", "name=weights", f"run_dir={run.path}"]
    config = load("digits", [*asked, "kronecker.include_bias=false"])
    assert not complete(config)
    assert "uncovered  1.bias: " in skerch("results", run.path, "--name", "weights")[1]
    shutil.rmtree(run.method("weights"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["method=kfac", "hessian.curvature=ggn"], "leave hessian.curvature out"),
        (["method=ekfac", "kronecker.correction=false"], "take method=kfac"),
        (["method=autocorrelation", "kronecker.correction=true"], "leave it at null"),
        (["method=kfac", "kronecker.factor_eigh=sketched"], "needs kronecker.rank"),
        (
            [
                "method=kfac",
                "kronecker.factor_eigh=sketched",
                "kronecker.rank=5",
                "kronecker.tol=0.1",
            ],
            "not both",
        ),
        (["method=kfac", "kronecker.tol=0.1"], "ask for that"),
        (["method=kfac", "kronecker.fisher=exact"], "one of type2, mc, empirical"),
        (["method=kfac", "kronecker.part_size=1", "hessian.datapoints=2000000"], "larger parts"),
        (["method=kfac", "hessian.mode=train"], "leave it at eval"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(options, words, small):
    with pytest.raises(ConfigError) as refusal:
        small(*options)
    assert words in str(refusal.value)


def test_another_value_of_any_key_is_refused_with_the_difference(run, small_overrides):
    asked = [*small_overrides, *SMALL, "method=kfac", f"run_dir={run.path}"]
    others = {
        **{"fisher": "mc", "correction": "true", "sharing": "reduce", "include_bias": "false"},
        **{"factor_eigh": "sketched", "rank": "5", "tol": "0.1", "against": "ekfac"},
    }
    for field in fields(load("digits", asked).kronecker):
        changed = [f"kronecker.{field.name}={others.get(field.name, 7)}"]
        if field.name in ("factor_eigh", "rank"):
            changed = ["kronecker.factor_eigh=sketched", "kronecker.rank=5"]
        elif field.name == "tol":
            changed += ["kronecker.factor_eigh=sketched"]
        with pytest.raises(ConfigError, match=rf"kronecker\.{field.name}: .* -> "):
            bind(run, load("digits", [*asked, *changed]))


def test_more_partitions_than_layers_are_refused(small):
    (words, *_) = complete(small("method=kfac", "kronecker.partitions=9")).values()
    assert "3 layers have Kronecker factors, too few for kronecker.partitions=9" in words


def test_a_run_that_moved_still_has_its_operator(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "elsewhere")
    found = package.load(tmp_path / "elsewhere", "kfac")[60, "test"]
    shutil.rmtree(tmp_path / "elsewhere" / "training")  # no network is needed
    inverse = found.approximation().inverse(0.1)
    v = torch.ones(inverse.size, dtype=torch.float64)
    whole = found.approximation() @ (inverse @ v) + 0.1 * (inverse @ v)
    assert torch.dist(whole, v) < 1e-10
