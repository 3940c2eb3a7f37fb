"""Inverse-curvature products (A + δ I)⁻¹ g for gradients g of a run's problem."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from skerch.analysis.figures import damping_figure, save
from skerch.curvature.gradients import example_gradients
from skerch.files import write_atomically
from skerch.jobs.commands.system import WAYS, System
from skerch.jobs.config import ConfigError
from skerch.jobs.pipeline.ranges import parse_ranges
from skerch.jobs.problems import user_code
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.training_files import load_hessian_data
from skerch.kronecker import files
from skerch.kronecker.gradients import low_rank
from skerch.kronecker.inverse import KINDS
from skerch.krylov import choose_damping, conjugate_gradients
from skerch.linops.base import LinearOperator

TRIAL = 12  # products for each preconditioner that is tried
TOL = 1e-4  # of CG's relative residual
HELD_OUT = 20  # gradients by which a damping is chosen
GRID = np.logspace(-3, 2, 11)  # dampings tried, over the mean eigenvalue


@dataclass(frozen=True)
class Asked:
    """The options of the command."""

    by: str = "factors"
    name: str | None = None  # of the folder of factors
    pairs: str | None = None  # of the folder of eigenpairs
    step: int | None = None
    split: str | None = None
    gradients: str = "mean"  # mean, each, or a file
    of: str | None = None  # the split that gradients are of
    examples: str | None = None
    damping: float = 0.1  # δ of the system, over the mean eigenvalue
    inverse_damping: str | None = None  # of the approximate inverse, likewise, or auto
    kind: str = "damped"
    rank: int | None = None
    tol: float | None = None  # of CG, by default TOL
    scores: bool = False
    out: Path | None = None

    @property
    def tolerance(self) -> float:
        """Of CG's relative residual, as given or by default."""
        return TOL if self.tol is None else self.tol


@dataclass(frozen=True)
class Applied:
    """What the command found; errors are standard errors of means over gradients."""

    by: str
    curvature: str
    step: int
    split: str
    gradients: int
    damping: float  # δ of the system
    inverse_damping: float | None  # of the factors
    products: int  # of the exact curvature with solutions
    converged: bool | None  # None where nothing iterates
    residuals: list[float]  # ‖(A + δ I) x - g‖ / ‖g‖ of each
    low_rank_correlation: float | None  # of gᵀ F̂⁻¹ g' with that of gradients of low rank
    low_rank_correlation_error: float | None  # its standard error, over gradients
    uncovered: dict[str, str]  # parameters that are in no layer
    curve: dict[str, list[float]] | None  # of dampings tried


def run(run: RunDir, asked: Asked) -> tuple[Applied, Path]:
    """Solve, and write the products, the gradients and what was found.

    Raises:
        ConfigError: an option, or what it needs of the run, is not there.
    """
    _check(asked)
    system = System.of(run, asked.by, asked.name, asked.pairs, asked.step, asked.split)
    numbers = None if asked.examples is None else parse_ranges(asked.examples, "--examples")
    G = system.gradients(asked.gradients, asked.of, numbers)
    with system.A.frozen(), user_code("A product cannot be computed"):
        found, X = _solve(system, asked, G)
    tensors = {"products": _by_name(system, X), "gradients": _by_name(system, G)}
    if asked.scores:
        own = example_gradients(system.A, load_hessian_data(run, system.hessian.split))
        tensors["scores"] = {"all": X.T @ own}
    folder = system.hessian.context.directory.path
    path = asked.out or folder / f"applied-{asked.by}.safetensors"
    if found.curve is not None:
        title = f"{system.hessian.where}: damping by held-out gradients"
        save(damping_figure(found.curve, title), path.with_suffix(".png"))
    files.write(path, "products", tensors, asdict(found))
    text = json.dumps(asdict(found), indent=1)
    write_atomically(
        path.with_suffix(".json"), lambda file: file.write_text(text, encoding="utf-8")
    )
    return found, path


def print_applied(run_dir: RunDir, asked: Asked) -> None:
    """Solve, and say how well."""
    found, path = run(run_dir, asked)
    table = Table()
    for column in ("gradients", "by", "damping", "of factors", "products", "relative residual"):
        table.add_column(column, justify="right")
    own = "" if found.inverse_damping is None else f"{found.inverse_damping:.3g}"
    cells = (str(found.gradients), found.by, f"{found.damping:.3g}", own, str(found.products))
    table.add_row(*cells, _mean(found.residuals))
    console = Console()
    console.print(table)
    notes = []
    if found.low_rank_correlation is not None:
        notes.append(
            f"rank {asked.rank}: the {found.gradients**2:,} scores between these gradients "
            f"correlate by {found.low_rank_correlation:.3f} ± "
            f"{found.low_rank_correlation_error:.1g} with those of full ones"
        )
    if found.uncovered and found.by == "factors":
        notes.append(f"in no layer: {', '.join(found.uncovered)}; their λ is 0")
    if found.converged is False:
        notes.append(f"warning  not all residuals are as small as --tol {asked.tolerance:g}")
    tried = found.curve["dampings"] if found.curve else []
    if tried and found.inverse_damping in (min(tried), max(tried)):
        notes.append("warning  the damping is at an end of those tried")
    for note in (*notes, f"files    {path}, {path.with_suffix('.json').name}"):
        console.print(note, soft_wrap=True, markup=False, highlight=False)


def _check(asked: Asked) -> None:
    """Refuse options that mean nothing."""
    if asked.kind not in KINDS:
        raise ConfigError(f"--kind {asked.kind} is unknown; choose {', '.join(KINDS)}.")
    if asked.kind != "damped" and asked.by != "factors":
        raise ConfigError(f"--kind {asked.kind} is of --by factors; the others are damped.")
    for option, given, takes in (
        ("name", asked.name, ("factors", "cg", "deflated")),
        ("inverse-damping", asked.inverse_damping, ("factors", "cg", "deflated")),
        ("rank", asked.rank, ("factors", "cg", "deflated")),
        ("pairs", asked.pairs, ("sketch", "deflated")),
        ("tol", asked.tol, ("cg", "deflated")),
    ):
        if given is not None and asked.by in WAYS and asked.by not in takes:
            raise ConfigError(
                f"--{option} is of --by {', '.join(takes)}, and --by {asked.by} takes none."
            )
    if asked.examples is not None and asked.gradients != "each":
        raise ConfigError("--examples are of --gradients each.")
    if asked.rank is not None and asked.rank < 1:
        raise ConfigError(f"--rank {asked.rank} is no rank, 1 or above.")
    if not 0 < asked.damping < math.inf:
        raise ConfigError(f"--damping {asked.damping} is no number above 0.")
    if asked.out is not None and asked.out.suffix in (".json", ".png"):
        raise ConfigError(
            f"--out {asked.out} must not end so, as a file of that name is beside it."
        )


def _solve(system: System, asked: Asked, G: Tensor) -> tuple[Applied, Tensor]:
    """What was found, and X (N, q)."""
    A, delta = system.A, asked.damping * system.mean
    own, curve = _inverse_damping(system, asked, delta)
    M: LinearOperator | None = system.inverse(delta, own, asked.kind)
    products, converged, start = 0, None, None
    if asked.by == "cg" and asked.inverse_damping is None:
        M, own, start, products = _by_trial(system, asked, delta, G)
    if asked.by in ("cg", "deflated"):
        result = conjugate_gradients(
            *(A, G),
            damping=delta,
            preconditioner=M,
            tol=asked.tolerance,
            x0=start,
            callback=_progress(),
        )
        X, residuals = result.solution, result.residuals
        products, converged = products + result.products, bool(result.converged.all())
    else:
        assert M is not None
        X = (M @ G.to(M.dtype)).to(G)
        scale = G.norm(dim=0).clamp(min=torch.finfo(G.dtype).tiny)
        residuals = (A @ X + delta * X - G).norm(dim=0) / scale
    correlated: tuple[float | None, float | None] = (None, None)
    if asked.rank is not None:
        correlated = _low_rank(system, own, G, asked.rank)
    found = Applied(
        asked.by,
        type(A).__name__.removesuffix("Operator"),
        system.hessian.step,
        system.hessian.split,
        G.shape[1],
        delta,
        None if system.factors is None or math.isinf(own) else own,
        products,
        converged,
        residuals.double().tolist(),
        *correlated,
        {} if system.factors is None else system.factors.uncovered,
        curve,
    )
    return found, X


def _inverse_damping(
    system: System, asked: Asked, delta: float
) -> tuple[float, dict[str, list[float]] | None]:
    """δ of the factors, and the curve by which it is chosen, if it is."""
    given, K = asked.inverse_damping, system.factors
    if given is None:
        return delta, None
    if K is None:
        raise ConfigError("--inverse-damping is of Kronecker factors; name some by --name.")
    if given != "auto":
        try:
            number = float(given)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise ConfigError(f"--inverse-damping {given} is no number above 0, nor auto.")
        return number * K.mean, None
    found = choose_damping(
        system.A,
        lambda own: system.inverse(delta, own, asked.kind),
        system.held_out(HELD_OUT),
        damping=delta,
        dampings=[delta, *(GRID * K.mean).tolist()],
        scaled=asked.scores,
    )
    tensors = {
        "dampings": found.dampings,
        "errors": found.mean,
        "standard_errors": found.stderr,
    }
    return found.damping, {name: tensor.tolist() for name, tensor in tensors.items()}


def _by_trial(
    system: System, asked: Asked, delta: float, G: Tensor
) -> tuple[LinearOperator | None, float, Tensor, int]:
    """The preconditioner that comes nearest in a few steps, its damping, where it came, products.

    Factors at δ, at the mean eigenvalue, or none (an infinite damping): where much of A is not in
    the factors, none is the best. Nearest is in the norm of A + δ I, by -xᵀ(g + r) for residuals r.
    """
    assert system.factors is not None
    products = 0
    best: tuple[float, LinearOperator | None, float, Tensor] = (math.inf, None, math.inf, G)
    for own in (delta, max(delta, system.factors.mean), math.inf):
        M = None if math.isinf(own) else system.inverse(delta, own, asked.kind)
        tried = conjugate_gradients(
            system.A, G, damping=delta, preconditioner=M, tol=asked.tolerance, max_products=TRIAL
        )
        X, products = tried.solution, products + tried.products + G.shape[1]
        R = G - system.A @ X - delta * X
        gain = -float((X.double() * (G + R).double()).sum())
        if gain < best[0]:
            best = gain, M, own, X
    return best[1], best[2], best[3], products


def _low_rank(system: System, own: float, G: Tensor, rank: int) -> tuple[float, float]:
    """The correlation of scores between all gradients, full and of low rank, and its error."""
    K = system.factors
    if K is None:
        raise ConfigError("--rank is of layers' matrices; name Kronecker factors by --name.")
    if G.shape[1] < 3:
        raise ConfigError("--rank compares scores of gradients; give three or more (each).")
    M, few = K.inverse(own), low_rank(G, K, rank)
    full, less = G.T @ (M @ G), few.T @ (M @ few)
    return score_correlation(full, less)


def score_correlation(full: Tensor, less: Tensor) -> tuple[float, float]:
    """The correlation r of two matrices (n, n) of scores between n gradients, and its error.

    Scores share gradients, so it is the jackknife's standard error over these: with r_i that
    without row and column i, √((n - 1)/n Σ (r_i - mean r)²) (Efron, Tibshirani 1993, ch. 11).
    """
    n = len(full)
    x, y = (scores.double() - scores.double().mean() for scores in (full, less))

    def correlation(sums: list[Tensor], m: int) -> Tensor:
        xs, ys, xx, yy, xy = sums
        return (xy - xs * ys / m) / ((xx - xs**2 / m) * (yy - ys**2 / m)).sqrt()

    terms = x, y, x**2, y**2, x * y
    whole = correlation([T.sum() for T in terms], n**2)
    without = [T.sum() - T.sum(0) - T.sum(1) + T.diagonal() for T in terms]
    each = correlation(without, (n - 1) ** 2)
    return float(whole), float(((n - 1) / n * (each - each.mean()).square().sum()).sqrt())


def _progress() -> Callable[[Tensor], None]:
    """A line at iterations 1, 2, 4, 8, …"""
    numbers = count(1)

    def report(residuals: Tensor) -> None:
        number = next(numbers)
        if number & (number - 1) == 0:
            print(f"iteration {number}: largest residual {float(residuals.max()):.2g}", flush=True)

    return report


def _by_name(system: System, X: Tensor) -> dict[str, Tensor]:
    """X (N, q) by parameter, (q, *shape)."""
    return {
        name: X[system.A.columns[name]].T.reshape(-1, *p.shape).contiguous()
        for name, p in system.A.params.items()
    }


def _mean(values: list[float]) -> str:
    """A mean with its standard error; a single number is no estimate."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return f"{mean:.2g}"
    return f"{mean:.2g} ± {math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n):.1g}"
