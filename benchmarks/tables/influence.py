"""Influence of examples by approximate inverses, against retraining without each of them.

A network with weight decay δ on scikit-learn's digits, in float64, trained by L-BFGS until its
gradient is 0. Without an example i the loss of a query q changes by about g_qᵀ (A + δ I)⁻¹ g_i / n.
The table has the rank correlation of that with what retraining changes, over examples, as the mean
over queries. --quick: fewer examples, retrained for less long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import mean, stdev

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Benchmark, Figure, Options, say, table
from benchmarks.rates import machine
from skerch import HessianOperator, seigh
from skerch.curvature import FisherOperator, GGNOperator, supervised_loss
from skerch.kronecker.fit import kronecker
from skerch.krylov import DeflatedInverse, choose_damping, conjugate_gradients

BENCHMARK = Benchmark("docs/kronecker.md", make="accuracy")
EXAMPLES, QUERIES, HELD_OUT, LEFT_OUT, DECAY, PAIRS = 300, 100, 20, 60, 1e-3, 100
METHODS = (
    *(("kfac", False), ("ekfac", True), ("tkfac", False), ("tkfac", True), ("shampoo", True)),
    *(("nearest", False), ("nearest", True), ("autocorrelation", None)),
)


class Problem:
    """A trained network, and what losses of queries change by without an example."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        digits = load_digits()
        order = torch.randperm(len(digits.data))[: EXAMPLES + QUERIES + HELD_OUT]
        x, y = torch.tensor(digits.data / 16)[order], torch.tensor(digits.target)[order]
        parts = zip(*(each.split([EXAMPLES, QUERIES, HELD_OUT]) for each in (x, y)), strict=True)
        (self.x, self.y), self.query, self.held_out = parts
        self.model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)).double()
        self.params = list(self.model.parameters())
        self.data = [(self.x, self.y)]

    def train(self, steps: int, without: int | None = None) -> None:
        """Minimise the loss from where the parameters are."""
        weights = torch.ones(EXAMPLES, dtype=torch.float64)
        if without is not None:
            weights[without] = 0
        optimizer = torch.optim.LBFGS(
            self.params,
            max_iter=steps,
            tolerance_grad=1e-9,
            tolerance_change=1e-14,
            history_size=50,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            losses = F.cross_entropy(self.model(self.x), self.y, reduction="none")
            decay = DECAY / 2 * sum(p.square().sum() for p in self.params)
            total: Tensor = (weights * losses).sum() / EXAMPLES + decay
            total.backward()
            return total

        optimizer.step(loss)

    def losses(self) -> Tensor:
        """Of the queries."""
        with torch.no_grad():
            return F.cross_entropy(self.model(self.query[0]), self.query[1], reduction="none")

    def changes(self, left_out: list[int], steps: int) -> Tensor:
        """Of the losses of queries (examples, queries), by retraining."""
        best, before = [p.detach().clone() for p in self.params], self.losses()
        rows = []
        for number, i in enumerate(left_out):
            if not number % 20:
                say(f"retraining {number} of {len(left_out)}")
            self.train(steps, i)
            rows.append(self.losses() - before)
            with torch.no_grad():
                for p, b in zip(self.params, best, strict=True):
                    p.copy_(b)
        return torch.stack(rows)

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Of each example's loss, (N, n)."""
        found = [
            torch.autograd.grad(F.cross_entropy(self.model(a[None]), b[None]), self.params)
            for a, b in zip(x, y, strict=True)
        ]
        return torch.stack([torch.cat([p.flatten() for p in each]) for each in found], dim=1)


def measure(options: Options) -> Iterator[str | Figure]:
    """A row a method."""
    yield machine()
    problem = Problem()
    say("training")
    problem.train(1000 if options.quick else 5000)
    left_out = torch.randperm(EXAMPLES)[: 20 if options.quick else LEFT_OUT].tolist()
    exact = problem.changes(left_out, 100 if options.quick else 400)
    G = problem.gradients(problem.x[left_out], problem.y[left_out])
    Q = problem.gradients(*problem.query)
    rows, found = [], {}
    for name, solve in inverses(problem).items():
        say(name)
        solution, products = solve(Q)
        predicted = G.T @ solution / EXAMPLES
        ranks = [
            float(spearmanr(p, e).statistic) for p, e in zip(predicted.T, exact.T, strict=True)
        ]
        found[name] = mean(ranks)
        error = stdev(ranks) / len(ranks) ** 0.5
        rows.append((name, f"{found[name]:.3f} ± {error:.3f}", products))
    yield table(("inverse", "rank correlation", "products a query"), rows)
    gain = found["CG of the GGN, preconditioned by ekfac"] - found["ekfac"]
    yield Figure("correlation of CG on the GGN above EK-FAC's", gain, "≥", 0)


def inverses(problem: Problem) -> dict[str, Callable[[Tensor], tuple[Tensor, str]]]:
    """g ↦ an approximation of (A + δ I)⁻¹ g, and its products."""
    loss = supervised_loss(F.cross_entropy)
    fisher = FisherOperator.of_loss(problem.model, problem.data, loss)
    ggn = GGNOperator.of_loss(problem.model, problem.data, loss)
    hessian = HessianOperator(problem.model, problem.data, loss)
    held_out = problem.gradients(*problem.held_out)
    found: dict[str, Callable[[Tensor], tuple[Tensor, str]]] = {
        "none (dot products)": lambda g: (g, "0")
    }
    factors = {}
    for method, corrected in METHODS:
        K = factors[method] = kronecker(fisher, method, correction=corrected)
        name = f"{method}{', corrected' if corrected and method != 'ekfac' else ''}"
        found[name] = lambda g, K=K: (K.inverse(DECAY) @ g, "0")
    K = factors["ekfac"]
    grid = K.mean * np.logspace(-2, 2, 13)
    chosen = {}
    for words, scaled in (("solutions", False), ("scores", True)):
        best = choose_damping(
            ggn, K.inverse, held_out, damping=DECAY, dampings=grid, scaled=scaled
        ).damping
        chosen[words] = K.inverse(best)
        name = f"ekfac, damping {best / DECAY:.1f} δ chosen for {words}"
        found[name] = lambda g, M=chosen[words]: (M @ g, "0")

    def cg(A: HessianOperator | GGNOperator, M: object, g: Tensor) -> tuple[Tensor, str]:
        result = conjugate_gradients(A, g, damping=DECAY, preconditioner=M, tol=1e-4)
        return result.solution, f"{result.products / g.shape[1]:.0f}"

    found["CG of the GGN, preconditioned by ekfac"] = lambda g: cg(ggn, chosen["solutions"], g)
    found["CG of the GGN"] = lambda g: cg(ggn, None, g)
    pairs = seigh(hessian, outer=PAIRS, seed=0)
    deflated = DeflatedInverse(pairs, DECAY, absolute=True)
    found[f"SkEIGH of the Hessian, {PAIRS} pairs"] = lambda g: (deflated @ g, "0")
    found["CG of the Hessian, deflated by it"] = lambda g: cg(hessian, deflated, g)
    return found
