"""Methods lanczos, trace and density: against the exact Hessian, resumed, refused, side by side."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from dataclasses import fields, replace

import pytest
import torch

import skerch as package
from skerch.curvature.dense import dense_hessian
from skerch.estimate import Estimate
from skerch.files import FileError
from skerch.jobs import problems
from skerch.jobs.commands.exhaustive import _in_float64
from skerch.jobs.config import ConfigError, load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.run_dir import RunDir, products_file
from skerch.jobs.run_dir.binding import bind
from skerch.jobs.run_dir.products_file import Products
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs
from skerch.jobs.stages.krylov import CountedOperator

METHODS = ("lanczos", "trace", "density")
WANTED = {
    "lanczos": ["lanczos.k=12", "lanczos.tol=1e-6"],
    "smallest": ["method=lanczos", "lanczos.k=3", "lanczos.which=SA"],
    "trace": ["trace.products=60"],
    "deflated": ["method=trace", "trace.products=60", "trace.deflate=seigh"],
    "density": ["density.runs=4", "density.steps=30"],
    "atoms": ["method=density", "density.runs=4", "density.steps=30", "density.deflate=lanczos"],
}
ANOTHER = {"k": 3, "which": "LA", "tol": 0.5, "max_products": 500, "block_size": 2, "seed": 7}
ANOTHER |= {"estimator": "hutchinson", "products": 70, "deflate": "seigh", "runs": 5, "steps": 31}
OF_NONE = dict(zip(METHODS, (*METHODS[1:], METHODS[0]), strict=True))  # another method's section


@pytest.fixture(scope="module")
def run(tmp_path_factory, reference, small_overrides):
    """The small experiment with all methods beside its sketch, on the digits."""
    directory = tmp_path_factory.mktemp("krylov") / "run"
    shutil.copytree(reference.run_dir, directory)
    for name, options in WANTED.items():
        asked = [f"run_dir={directory}", *small_overrides, f"method={name}", *options]
        names = [] if name in METHODS else [f"name={name}"]
        if name not in METHODS:
            asked.remove(f"method={name}")
        assert not complete(load("digits", [*asked, *names]))
    return RunDir(directory)


@pytest.fixture(scope="module")
def exact(reference):
    """The eigenpairs at step 60, by automatic differentiation in float64, ascending."""
    inputs = load_inputs(Context(RunDir(reference.run_dir), reference, "seigh", 60, "test"))
    return torch.linalg.eigh(dense_hessian(*_in_float64(reference, inputs)))


def result(run, name):
    return package.load(run.path, name)[60, "test"]


def test_lanczos_finds_exact_eigenvalues_within_their_bounds(run, exact):
    found = result(run, "lanczos")
    values = exact.eigenvalues
    largest = values[values.abs().argsort(descending=True)][:12]
    off = (found.eigenvalues - largest).abs()
    assert (off <= found.eigenvalue_bound).all()
    assert (found.eigenvalue_bound < 1e-5 * found.eigenvalues.abs()).all()
    W = found.eigenvectors[:].double()
    assert torch.dist(W.T @ W, torch.eye(12, dtype=torch.float64)) < 1e-5
    residual = (found.operator() @ W.float()).double() - W * found.eigenvalues
    stored = torch.tensor(found.results.pair_residual, dtype=torch.float64)
    assert torch.allclose(residual.norm(dim=0), stored, rtol=0.5, atol=5e-6)
    smallest = result(run, "smallest")
    assert ((smallest.eigenvalues - values[:3]).abs() <= smallest.eigenvalue_bound).all()


def test_lanczos_has_the_exact_overlap_within_its_error(run, exact):
    found, (values, vectors) = result(run, "lanczos"), exact
    W = vectors[:, values.abs().argsort(descending=True)]
    theta = torch.cat([parameter.flatten() for parameter in found.parameters.values()])
    order = theta.abs().argsort(descending=True)
    for k in (1, 2, 5):
        overlap = float(W[order[:k], :k].square().sum()) / k
        error = found.results.overlap_error[k - 1]
        assert abs(found.results.overlap[k - 1] - overlap) <= error < 1e-4
    assert found.results.overlap_error[-1] is None  # no next eigenvalue is known


def test_traces_hold_and_eigenpairs_sharpen_them_at_no_product(run, exact):
    plain, deflated = (result(run, name) for name in ("trace", "deflated"))
    for found in (plain, deflated):
        assert abs(found.trace.value - float(exact.eigenvalues.sum())) <= 1.5 * found.trace.error
        assert found.results.products <= 60
    assert deflated.trace.error < plain.trace.error
    assert (plain.results.deflated, deflated.results.deflated) == (0, 20)


def test_a_density_integrates_to_one_and_has_known_eigenvalues_as_atoms(run, exact):
    found, atoms = (result(run, name).results for name in ("density", "atoms"))
    assert torch.trapezoid(*(torch.tensor(x) for x in (found.density, found.grid))) == (
        pytest.approx(1, abs=1e-3)
    )
    (least, largest), ends = found.ends, exact.eigenvalues[[0, -1]].tolist()
    assert ends[0] - 1e-4 <= least < largest <= ends[1] + 1e-4
    assert largest == pytest.approx(ends[1], rel=1e-3)
    assert found.products == 120
    for each in (found, atoms):
        for ends in ((-math.inf, -0.2), (0.2, math.inf), (1.0, math.inf)):
            share, inside = each.share(*ends), (exact.eigenvalues > ends[0])
            inside &= exact.eigenvalues <= ends[1]
            assert abs(share.value - float(inside.double().mean())) <= share.error + 0.004
    assert torch.allclose(torch.tensor(atoms.atoms).double(), result(run, "lanczos").eigenvalues)


def test_all_methods_are_beside_the_sketch_on_one_training(run, skerch):
    folders = sorted(path.parent.name for path in run.path.glob("*/hessian_config.yaml"))
    assert folders == sorted([*WANTED, "seigh"])
    rows = json.loads(skerch("results", run.path, "--json")[1])
    by_name = {row["name"]: row for row in rows if row["step"] == 60}
    first = by_name["seigh"]["eigenvalue_1"]
    assert by_name["lanczos"]["eigenvalue_1"] == pytest.approx(first, rel=1e-3)
    assert by_name["trace"]["trace"] == result(run, "trace").trace.value
    assert by_name["density"]["matvecs"] == 120
    header, *lines = skerch("results", run.path, "--csv")[1].splitlines()
    assert len(lines) == len(rows)
    assert header.startswith("name,step,split,parameters,")
    table = skerch("results", run.path)[1]
    assert str(result(run, "trace").trace) in table
    assert "deflated by seigh" in table
    status = json.loads(skerch("status", run.path, "--json", "--verify")[1])
    assert not status["damaged"]
    assert {method["name"] for method in status["methods"]} == {*folders}
    for name in WANTED:
        assert run.figure(name, 60, "test").stat().st_size > 5000


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_task_that_runs_again_leaves_the_same_bytes(method, run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "run")
    config = load(tmp_path / "run" / method / "hessian_config.yaml")
    copy = RunDir(tmp_path / "run")
    path = copy.result(config, 60, "test")
    before = {each.name: each.read_bytes() for each in path.parent.glob("*")}
    for name in ("eigh.h5", path.name):
        (path.parent / name).unlink(missing_ok=True)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the provenance has 1
    assert not complete(config)
    assert {each.name: each.read_bytes() for each in path.parent.glob("*")} == before


@pytest.mark.parametrize("keep", ["true", "false"])
@pytest.mark.parametrize("method", [*METHODS, "deflated"])
def test_products_of_a_killed_task_are_not_made_again(method, keep, run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "run")
    folder = tmp_path / "run" / method / "step-000060-test"
    before = {each.name: each.read_bytes() for each in folder.glob("*")}
    config = load(folder.parent / "hessian_config.yaml", [f"launcher.keep_products={keep}"])
    path = RunDir(tmp_path / "run").result(config, 60, "test")
    products, multiply = result(run, method).results.products, CountedOperator._multiply
    for name in ("eigh.h5", path.name):
        (folder / name).unlink(missing_ok=True)
    made = []

    def limited(operator, X):
        if sum(made) + X.shape[1] > limit:
            raise KeyboardInterrupt
        made.append(X.shape[1])
        return multiply(operator, X)

    monkeypatch.setattr(CountedOperator, "_multiply", limited)
    limit = products - 1
    with pytest.raises(KeyboardInterrupt):
        complete(config)
    first = sum(made)
    assert first
    limit = 10 * products
    assert not complete(config)
    assert sum(made) == products + (0 if keep == "true" else first)
    assert {each.name: each.read_bytes() for each in folder.glob("*")} == before


def test_a_damaged_product_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(products_file, "SECONDS", 0.0)
    X = torch.ones(5, 2)
    Products(tmp_path, "H").of(X, torch.clone)
    (path,) = tmp_path.glob("*.h5")
    found = Products(tmp_path, "H")
    assert found.of(X, pytest.fail).equal(X)
    assert found.of(2 * X, torch.clone).equal(2 * X)
    assert Products(tmp_path, "another").of(X, torch.zeros_like).equal(0 * X)
    data = bytearray(path.read_bytes())
    data[data.index(X.numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileError, match=rf"{path} is damaged .* delete it"):
        found.of(X, pytest.fail)


@pytest.mark.parametrize("method", METHODS)
def test_another_value_of_any_key_is_refused_with_the_difference(method, run, small_overrides):
    asked = [f"run_dir={run.path}", *small_overrides, f"method={method}", *WANTED[method]]
    kept = load("digits", asked)
    for field in fields(getattr(kept, method)):
        other = f"{method}.{field.name}={ANOTHER[field.name]}"
        config = load("digits", [*asked, other])
        words = rf"{method}\.{field.name}: .* -> .*\nSet another name \(as in name={method}-2\)"
        with pytest.raises(ConfigError, match=words):
            bind(run, config)
    assert load("digits", [*asked, "sketch.seed=1", f"{OF_NONE[method]}.seed=1"]) != kept
    bind(run, load("digits", [*asked, "sketch.seed=1", f"{OF_NONE[method]}.seed=1"]))


def test_a_loss_edited_between_a_kill_and_the_resume_is_refused(run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "run")
    config = load(tmp_path / "run" / "trace" / "hessian_config.yaml")
    RunDir(tmp_path / "run").result(config, 60, "test").unlink()
    original = problems.load_problem

    def edited(*arguments):
        problem = original(*arguments)
        return replace(problem, loss_fn=lambda m, b: 3 * problem.loss_fn(m, b))

    monkeypatch.setattr(problems, "load_problem", edited)
    (words,) = complete(config).values()
    assert "was laid out for another loss: loss was" in words


def test_damage_of_any_file_is_named(run, tmp_path, skerch):
    shutil.copytree(run.path, tmp_path / "run")
    for path in tmp_path.glob("run/*/step-000060-test/*"):
        if path.suffix == ".json" and path.parents[1].name in METHODS:
            path.write_text(path.read_text().replace("1", "2"))
    status, out, _ = skerch("status", tmp_path / "run", "--verify")
    assert status == 1
    for method in METHODS:
        for name in ("provenance", method):
            assert f"{method}/step-000060-test/{name}.json is damaged" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["method=trace", "name=t", "trace.deflate=other"], "no other yet"),
        (["method=trace", "trace.deflate=trace"], "the method itself"),
        (["method=trace", "trace.deflate=../x"], "it names a folder"),
        (["method=trace", "trace.deflate=seigh", "hessian.splits=[train]"], "step 20, train"),
        (
            ["method=trace", "trace.deflate=seigh", "name=t", "training.record_steps=[20,40,60]"],
            "no eigenpairs of step 40",
        ),
        (["method=trace", "trace.estimator=xnystrace"], "without negative eigenvalues"),
        (["method=lanczos", "lanczos.max_products=3"], "less than lanczos.k=10"),
        (["method=lanczos", "lanczos.k=2000", "name=l"], "more than the dimension N=1930"),
        (["method=lanczos", "lanczos.which=XX"], "one of LM, LA, SA"),
        (["method=density", "density.steps=2000", "name=d"], "more than the dimension N=1930"),
        (["method=density", "density.tol=1"], "no key density.tol"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(options, words, run, small_overrides):
    with pytest.raises(ConfigError) as refusal:
        complete(load("digits", [f"run_dir={run.path}", *small_overrides, *options]))
    assert words in str(refusal.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_tells_products_memory_disk_and_time(method, small, skerch):
    small()
    status, out, err = skerch("plan", "digits", f"method={method}", "--calibrate")
    assert (status, err) == (0, "")
    for words in ("disk: products", "disk: what stays", "time: all", "memory   a task about"):
        assert words in out
    assert "measurement" not in out


def test_workers_share_the_hessians(small, run):
    config = small("method=trace", "trace.products=60", "launcher.workers=2")
    assert not complete(config)
    for step in (20, 60):
        ours, theirs = (
            RunDir(each).result(config, step, "test").read_bytes()
            for each in (config.run_dir, run.path)
        )
        assert ours == theirs


def test_status_says_how_far_a_running_task_is(run, tmp_path, skerch):
    shutil.copytree(run.path, tmp_path / "run")
    copy = RunDir(tmp_path / "run")
    copy.result(copy.load("trace"), 60, "test").unlink()
    begin, now = (f"2026-11-28T01:0{minute}:00+00:00" for minute in range(2))
    task = "trace.step-000060-test.trace"
    copy.task_log(task).write_text(
        f"{begin} {task} starts on {socket.gethostname()}, pid {os.getpid()}\n"
        f"{now} 40/60 products, 0.667/s, 30 s left\n"
    )
    out = skerch("status", copy.path)[1]
    assert f"{task} running: process {os.getpid()} of this machine\n" in out
    assert "  so far: 40/60 products, 0.667/s, 30 s left\n" in out


def test_a_sketch_that_is_not_made_is_not_looked_at():
    options = ["sketch.inner=3", "sketch.start=next"]
    assert load("digits", [*options, "method=trace"]).sketch.rounds == "auto"
    with pytest.raises(ConfigError, match="sketch"):
        load("digits", options)


def test_the_digits_of_a_trace_are_those_that_its_error_leaves(run):
    found = result(run, "trace").trace
    assert isinstance(found, Estimate)
    assert str(found) in repr(result(run, "trace"))
    assert math.isfinite(found.error)
