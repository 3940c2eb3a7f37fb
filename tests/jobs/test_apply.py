"""`apply`: against dense solves, for each way, with and without bias, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import skerch as package
from skerch.errors import SkerchError
from skerch.jobs.commands.apply import Asked, score_correlation
from skerch.jobs.commands.apply import run as apply
from skerch.jobs.commands.system import System
from skerch.jobs.config import load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.run_dir import RunDir
from skerch.kronecker import files
from skerch.linops import DiagonalOperator

FACTORS = {
    "kfac": ["method=kfac"],
    "ekfac": ["method=ekfac"],
    "tkfac": ["method=tkfac"],
    "shampoo": ["method=shampoo", "kronecker.correction=true"],
    "nearest": ["method=nearest", "kronecker.iterations=2"],
    "autocorrelation": ["method=autocorrelation"],
    "weights": ["method=ekfac", "name=weights", "kronecker.include_bias=false"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_overrides):
    """The digits with factors of each method, and eigenpairs of the GGN."""
    directory = tmp_path_factory.mktemp("apply") / "run"
    common = [*small_overrides, "hessian.dtype=float64", "training.record_steps=[60]"]
    common += ["hessian.splits=[train,test]", f"run_dir={directory}"]
    for own in (*FACTORS.values(), ["hessian.curvature=ggn", "name=pairs", "sketch.outer=20"]):
        assert not complete(load("digits", [*common, *own]))
    return RunDir(directory)


def dense(op):
    return op @ torch.eye(op.shape[0], dtype=torch.float64)


def solved(run, **options):
    """What was found, and products and gradients (N, q)."""
    found, path = apply(run, Asked(split="train", **options))
    layers = files.read(path, "products").layers
    flat = [
        torch.cat([t.flatten(1) for t in by_order(run, layers[what])], dim=1).T
        for what in ("products", "gradients")
    ]
    assert json.loads(path.with_suffix(".json").read_text())["by"] == found.by
    return found, *flat


def by_order(run, tensors):
    """The tensors in the parameters' order."""
    return [tensors[name] for name in package.load(run.path)[60, "train"].parameters]


@pytest.mark.parametrize("name", FACTORS)
def test_by_factors_it_is_the_dense_solve(run, name):
    found, X, G = solved(run, name=name, gradients="each", examples="0-2")
    K = dense(package.load(run.path, name=name)[60, "train"].approximation())
    exact = torch.linalg.solve(K + found.damping * torch.eye(len(K)).double(), G)
    torch.testing.assert_close(X, exact, rtol=1e-8, atol=1e-10 * float(exact.abs().max()))
    assert bool(found.uncovered) == (name == "weights")


@pytest.mark.parametrize("name", ["ekfac", "weights"])  # of which the latter leaves out biases
def test_by_cg_and_by_deflated_cg_it_is_the_dense_solve_of_the_ggn(run, name):
    products = {}
    for by, pairs in (("cg", None), ("deflated", "pairs")):
        found, X, G = solved(run, by=by, name=name, pairs=pairs, tol=1e-9)
        A = dense(package.load(run.path, name="pairs")[60, "train"].operator())
        exact = torch.linalg.solve(A + found.damping * torch.eye(len(A)).double(), G)
        torch.testing.assert_close(X, exact, rtol=1e-6, atol=1e-6 * float(exact.abs().max()))
        assert max(found.residuals) <= 1e-9
        products[by] = found.products
    assert products["deflated"] < products["cg"]


def test_by_a_sketch_it_is_exact_on_the_pairs_and_one_number_beyond(run):
    found, X, G = solved(run, by="sketch", gradients="each", examples="0,1")
    pairs = package.load(run.path, name="pairs")[60, "train"]
    W, values, trace = pairs.eigenvectors[:], pairs.eigenvalues, pairs.trace.value
    assert found.damping == pytest.approx(0.1 * trace / len(W))  # whatever factors there are
    assert found.inverse_damping is None
    torch.testing.assert_close(W.T @ X, (W.T @ G) / (values[:, None] + found.damping))
    rest = (trace - float(values.sum())) / (len(W) - len(values)) + found.damping
    torch.testing.assert_close(X - W @ (W.T @ X), (G - W @ (W.T @ G)) / rest)


def test_a_damping_is_chosen_by_gradients_of_the_other_split_with_its_curve(run):
    found, *_ = solved(
        run, name="ekfac", inverse_damping="auto", gradients="each", examples="0-3", rank=3
    )
    curve = found.curve
    assert found.inverse_damping == curve["dampings"][curve["errors"].index(min(curve["errors"]))]
    assert len(curve["dampings"]) == len(curve["standard_errors"]) > 5
    assert 0.5 < found.low_rank_correlation <= 1 + 1e-12
    assert 0 < found.low_rank_correlation_error < 0.5


def test_the_error_of_a_correlation_of_scores_is_its_spread_over_draws_of_gradients():
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(300):
        G = torch.randn(40, 6, generator=generator, dtype=torch.float64)
        full, less = G @ G.T, G[:, :4] @ G[:, :4].T
        found.append(score_correlation(full, less))
        pearson = np.corrcoef(full.flatten(), less.flatten())[0, 1]
        assert found[-1][0] == pytest.approx(pearson, abs=1e-12)
    correlations, errors = torch.tensor(found).T
    assert float(errors.mean() / correlations.std()) == pytest.approx(1, abs=0.2)


def test_a_preconditioner_is_tried_beside_none(run, monkeypatch):
    tried = []
    N = package.load(run.path, name="ekfac")[60, "train"].operator().shape[0]
    bad = DiagonalOperator(torch.logspace(-6, 6, N, dtype=torch.float64))
    monkeypatch.setattr(System, "inverse", lambda *_: tried.append(1) or bad)
    found, _ = apply(run, Asked(by="cg", name="ekfac"))
    assert found.converged
    assert found.inverse_damping is None  # none was the best
    assert len(tried) >= 2


def test_scores_are_products_with_all_examples_gradients(run):
    _, path = apply(run, Asked(name="kfac", gradients="each", examples="0-4", scores=True))
    content = files.read(path, "products").layers
    flat = [torch.cat([t.flatten(1) for t in content[w].values()], dim=1) for w in content]
    by_name = dict(zip(content, flat, strict=True))
    own = by_name["products"] @ by_name["gradients"].T
    torch.testing.assert_close(by_name["scores"][:, :5], own, rtol=1e-6, atol=1e-12)


def gradients_file(run, path, **changes):
    """Random gradients of all parameters in a file; None leaves one out."""
    parameters = package.load(run.path)[60, "train"].parameters
    tensors = {name: torch.randn(2, *p.shape).double() for name, p in parameters.items()}
    tensors |= changes
    save_file({n: t for n, t in tensors.items() if t is not None}, path)
    return str(path)


def test_bergsons_include_bias_gradients_with_and_without_bias_are_checked_against_the_factors(
    run, tmp_path
):
    path = tmp_path / "gradients.safetensors"
    biases = {n: None for n in package.load(run.path)[60, "train"].parameters if "bias" in n}
    with_bias = gradients_file(run, path)
    found, *_ = solved(run, name="ekfac", gradients=with_bias)
    assert found.gradients == 2
    with pytest.raises(SkerchError, match=r"\(20, 65\) have a bias.*include_bias=true"):
        solved(run, name="weights", gradients=with_bias)
    without = gradients_file(run, path, **biases)
    found, *_ = solved(run, name="weights", gradients=without)
    with pytest.raises(SkerchError, match=r"\(20, 64\) have no bias.*include_bias=false"):
        solved(run, name="ekfac", gradients=without)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "magic"}, "--by magic is unknown; choose factors"),
        ({"name": "mine"}, "--name is mine, and .* has autocorrelation, ekfac, .*give one"),
        ({"name": None}, "--name names none, and"),
        ({"damping": -1.0}, "--damping -1.0 is no number above 0"),
        ({"inverse_damping": "low"}, "--inverse-damping low is no number"),
        ({"gradients": "none.safetensors"}, "none.safetensors is no file"),
        ({"gradients": "each", "examples": "900"}, "There is no example 900; there are"),
        ({"gradients": "each", "examples": "x"}, "--examples 'x' is not a list"),
        ({"examples": "0-3"}, "--examples are of --gradients each"),
        ({"gradients": "each", "rank": 0}, "--rank 0 is no rank"),
        ({"by": "sketch", "name": None, "inverse_damping": "auto"}, "--by sketch takes none"),
        ({"by": "sketch", "name": None, "tol": 1e-3}, "--tol is of --by cg, deflated"),
        ({"by": "sketch"}, "--name is of --by factors, cg, deflated, and --by sketch takes none"),
        ({"pairs": "pairs"}, "--pairs is of --by sketch, deflated, and --by factors takes none"),
        ({"by": "cg", "pairs": "pairs"}, "and --by cg takes none"),
        ({"out": Path("products.json")}, "must not end so"),
        ({"kind": "hot"}, "--kind hot is unknown"),
        ({"step": 7}, "has no Hessian"),
    ],
)
def test_mistakes_are_one_sentence(run, options, words):
    with pytest.raises(SkerchError, match=words):
        apply(run, Asked(**{"name": "ekfac", **options}))


def test_the_command_prints_residuals_with_their_error(run, skerch):
    status, out, _ = skerch(
        "apply", str(run.path), "--name", "kfac", "--gradients", "each", "--examples", "0-3"
    )
    assert status == 0
    assert "±" in out
    assert "applied-factors.safetensors" in out
