"""How often each error bar holds, and how wide it is beside the true error, over 400 draws a case.

Draws differ in the sketch's seed, test vectors and probes alike; exact results are those that the
matrix is made of. --quick makes a tenth of the draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import Benchmark, Figure, Options, say, table
from skerch import LinearOperator, aslinearoperator, seigh
from skerch.a_posteriori import eigenspace_sines
from skerch.analysis.overlap import overlap

BENCHMARK = Benchmark("docs/accuracy.md", make="accuracy")
DRAWS, CONFIDENCE = 400, 0.95
INDEX = torch.arange(1, 501, dtype=torch.float64)
UNIFORM = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SPECTRA = {  # by magnitude, not yet sorted
    "a gap after 10": torch.cat([torch.linspace(2, 1, 10).double(), 0.02 * UNIFORM[10:]]),
    "two clusters of 10": torch.cat(
        [3 + 1e-3 * UNIFORM[:10], 2 + 1e-3 * UNIFORM[10:20], 0.1 * UNIFORM[20:]]
    ),
    "10 above noise": torch.cat([torch.linspace(5, 1, 10).double(), 0.5 * UNIFORM[10:]]),
    "decay 1 / i": 1 / INDEX,
    "decay 1 / √i": INDEX**-0.5,
    "decay 10^(-i / 5)": 10 ** (-INDEX / 5),
}
MANY: dict[str, Any] = {}
TWO, ONE, OVERSAMPLED = {"rounds": 2}, {"rounds": 1}, {"recovery": "oversampled"}
CASES = [
    ("a gap after 10", "float32", 10, 50, MANY),
    ("two clusters of 10", "float64", 20, 60, MANY),
    ("two clusters of 10", "float32", 20, 60, TWO),
    ("10 above noise", "float32", 10, 50, MANY),
    ("10 above noise", "float64", 20, 80, OVERSAMPLED),
    ("decay 1 / i", "float32", 100, 200, MANY),
    ("decay 1 / i", "float64", 100, 200, TWO),
    ("decay 1 / √i", "float32", 20, 60, MANY),
    ("a gap after 10", "float32", 40, 80, ONE),
    ("decay 10^(-i / 5)", "float64", 20, 80, OVERSAMPLED),
]
MISSING = ("two clusters of 10", "float64", 10, 28, MANY)  # some of the 10 are not found
HEADS = ("", "eigenvalues: hold", "width", "overlaps: have one", "hold", "width",
         "traces: hold", "width", "norms: hold", "width")  # fmt: skip
KINDS = ("eigenvalue", "overlap", "trace", "‖H‖_F")


class Bars(NamedTuple):
    """Error bars, and the true errors of what they belong to."""

    bar: Tensor
    error: Tensor


def measure(options: Options) -> Iterator[str | Figure]:
    """A row a case."""
    draws = DRAWS // 10 if options.quick else DRAWS
    rows, least = [], dict.fromkeys(KINDS, 1.0)
    for number, (spectrum, dtype, outer, inner, how) in enumerate([*CASES, MISSING]):
        name = ", ".join([spectrum, dtype, f"{outer} of {inner}", _words(how)])
        say(name)
        case = Case(SPECTRA[spectrum], dtype, outer)
        found = [case.draw(seed, outer=outer, inner=inner, **how) for seed in range(draws)]
        cells = []
        for kind, *bars in zip(KINDS, *found, strict=True):
            bar, error = (torch.cat(each) for each in zip(*bars, strict=True))
            known = ~bar.isnan()
            if kind == "overlap":
                cells.append(f"{float(known.double().mean()):.0%}")
            if not known.any():
                cells += ["-", "-"]
                continue
            share = float((error <= bar)[known].double().mean())
            width = (bar / error.clamp(min=1e-300))[known].median()
            cells += [f"{share:.1%}", f"{float(width):.2g}"]
            if number < len(CASES):
                least[kind] = min(least[kind], share)
        rows.append([name, *cells])
    title = f"Error bars at 95 %, N = 500, 30 probes, {draws} draws a case"
    yield table(HEADS, rows, title)
    for kind, share in least.items():
        worst = f"{kind}: share that holds, the worst of {len(CASES)} cases"
        yield Figure(worst, share, "≥", CONFIDENCE, form=".3f")


def _words(how: dict[str, Any]) -> str:
    return {1: "one round", 2: "two rounds"}.get(how.get("rounds", 0)) or how.get(
        "recovery", "many rounds"
    )


class Case:
    """A matrix whose eigenvectors have most of their weight on few coordinates."""

    def __init__(self, spectrum: Tensor, dtype: str, outer: int):
        generator = torch.Generator().manual_seed(1)
        n = len(spectrum)
        weights = torch.exp(1.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64))
        V = torch.linalg.qr(weights * torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
        signs = 1 - 2 * (torch.rand(n, generator=generator) < 0.3).double()
        order = spectrum.argsort(descending=True)
        self.values, self.vectors = (spectrum * signs)[order], V[:, order]
        H = (self.vectors * self.values) @ self.vectors.T
        self.op: LinearOperator = aslinearoperator(
            ((H + H.T) / 2).to(getattr(torch, dtype)), self_adjoint=True
        )
        noise = torch.rand(n, generator=generator, dtype=torch.float64)
        self.parameters = self.vectors[:, :outer].square().sum(dim=1) + 0.05 * noise
        self.overlap = self._overlap(self.vectors[:, :outer], None)[0]

    def _overlap(self, vectors: Tensor, sines: Tensor | None) -> tuple[Tensor, Tensor]:
        found = overlap(vectors, self.parameters, sines=sines, random_masks=0)
        return found.overlap, found.overlap_error

    def draw(self, seed: int, **options: Any) -> list[Bars]:
        """Bars and errors of each of the `KINDS`, for one sketch."""
        r = seigh(self.op, seed=seed, **options)
        nearest = (r.eigenvalues[:, None] - self.values).abs().min(dim=1).values
        sines = eigenspace_sines(r.eigenvalues, r.pair_bound, r.eigenvalue_bound, r.beyond)
        found, bar = self._overlap(r.eigenvectors, sines)
        whole = torch.stack([self.values.sum(), self.values.norm()])
        sums = [
            Bars(torch.tensor([e.error]).double(), (e.value - true).abs()[None])
            for e, true in zip((r.trace, r.norm), whole, strict=True)
        ]
        return [
            Bars(r.eigenvalue_bound, nearest),
            Bars(bar, (found - self.overlap).abs()),
            *sums,
        ]
