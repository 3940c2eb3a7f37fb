"""What else could be done with the same matvecs: variants of `nystrom` on an exact Hessian.

Medians over three seeds on mnist_mini, with Gaussian test vectors, 30 probes besides. Those marked
* need matvecs that are not counted: they are limits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.exact import CACHE, TOP, Exact, load_exact
from benchmarks.harness import Benchmark, Options, say, table
from benchmarks.tables.accuracy import PROBES, SEEDS, STEP
from skerch.decompositions.recoveries.core import largest
from skerch.decompositions.recoveries.nystrom import FILTER_GRID

BENCHMARK = Benchmark("docs/accuracy.md", make="accuracy")


def measure(options: Options) -> Iterator[str]:
    """A table a budget, of a row a variant."""
    exact = load_exact(options.root, STEP, CACHE)
    for s in (710, 442):
        found = defaultdict(list)
        for seed in SEEDS:
            for name, figures in variants(exact, s, seed):
                say(f"{s}, seed {seed}, {name}")
                found[name].append(figures)
        rows = []
        for name, by_seed in found.items():
            medians = map(median, zip(*by_seed, strict=True))
            rows.append([name, *map(format, medians, (".3f", ".1e", "+.1%", ".3f", ".3f"))])
        heads = ("", "residual / best", "top ten", "last 20", "overlap, k/2", "overlap, k")
        yield table(heads, rows, f"mnist_mini, step {STEP}, {TOP} of {s}")


def basis(Y: Tensor, against: Tensor, columns: int) -> Tensor:
    """The leading left singular vectors of Y, orthogonal to the columns of `against`."""
    for _ in range(2):
        Y = Y - against @ (against.T @ Y)
    return torch.linalg.svd(Y, full_matrices=False).U[:, :columns]


@dataclass(frozen=True)
class Measured:
    """What is small of Y = H X, of the basis Q of its range, and of the probes Z."""

    exact: Exact
    random: int  # how many of the first columns of X are, all of unit norm
    R: Tensor  # QᵀY
    T: Tensor  # QᵀX
    M: Tensor  # XᵀY
    C: Tensor  # QᵀHQ, which nobody but an oracle has
    top: Tensor  # VᵀQ for the exact eigenvectors V
    QHZ: Tensor
    XHZ: Tensor

    @classmethod
    def take(cls, exact: Exact, sizes: tuple[int, ...], seed: int, probes_too: bool) -> Measured:
        """Rounds of these sizes: random vectors first, then bases of what the last round found."""
        H = exact.H.float()

        def product(X: Tensor) -> Tensor:
            return (H @ X.float()).double()

        def gaussian(columns: int, seed: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            return torch.randn(len(H), columns, generator=generator).double()

        X, Z = gaussian(sizes[0], seed), gaussian(PROBES, seed + 1000)
        Y, HZ = product(X), product(Z)
        if probes_too:
            X, Y = torch.cat([X, Z], dim=1), torch.cat([Y, HZ], dim=1)
        scale = X.norm(dim=0)
        X, Y = X / scale, Y / scale
        random, last = X.shape[1], Y[:, : sizes[0]]
        for size in sizes[1:]:
            found = basis(last, X[:, random:], size)
            last = product(found)
            X, Y = torch.cat([X, found], dim=1), torch.cat([Y, last], dim=1)
        Q = torch.linalg.qr(Y).Q
        assert exact.vectors is not None
        return cls(
            exact, random, Q.T @ Y, Q.T @ X, X.T @ Y, Q.T @ product(Q),
            exact.vectors.T @ Q, Q.T @ HZ, X.T @ HZ,
        )  # fmt: skip

    def figures(self, C: Tensor, quotients: bool = False) -> list[float]:
        """Residual over the best, top ten, mean error of the last 20, overlaps at k/2 and k.

        They are of a core's eigenpairs, or of its eigenvectors with their Rayleigh quotients.
        """
        exact, (values, U) = self.exact.eigenvalues, largest(C, TOP)
        if quotients:
            values = (U * (self.C @ U)).sum(dim=0)
        square = exact.square().sum() + (values * (values - 2 * (U * (self.C @ U)).sum(0))).sum()
        error = values.abs() / exact[:TOP].abs() - 1
        cosines = (self.top @ U).square()
        half = TOP // 2
        return [
            float(square.sqrt() / exact[TOP:].norm()),
            float(error[:10].abs().max()),
            float(error[-20:].mean()),
            float(cosines[:half, :half].sum() / half),
            float(cosines.sum() / TOP),
        ]

    def nystrom(self, p: float = 2.0, *, oracle: bool = False, weight: float = 1.0) -> Tensor:
        """The core Y W f(m) Wᵀ Yᵀ in the basis Q, of the δ with the least misfit on the probes.

        f(m) = |m|^(p - 1) / (|m|^p + δ^p) with the sign of m; an oracle has the least residual.
        """
        scale = torch.ones(len(self.M)).double()
        scale[: self.random] = weight
        m, W = largest(scale[:, None] * self.M * scale, len(self.M))
        W = scale[:, None] * W
        YW, WXHZ = self.R @ W, W.T @ self.XHZ
        resolved = m.abs() > torch.finfo(torch.float32).eps * m[0].abs()

        def misfit(f: Tensor) -> float:
            return float(torch.linalg.norm((YW * f) @ WXHZ - self.QHZ))

        def residual(f: Tensor) -> float:
            return self.figures((YW * f) @ YW.T)[0]

        a, top = m.abs(), m[TOP - 1].abs()
        finer = FILTER_GRID[0] * 10 ** torch.linspace(-1.5, -0.1, 8).double()
        deltas = torch.cat([finer, FILTER_GRID]) * top
        shapes = (a ** (p - 1) / (a**p + delta**p) for delta in deltas)
        filters = [torch.where(resolved, m.sign() * shape, 0.0) for shape in shapes]
        return (YW * min(filters, key=residual if oracle else misfit)) @ YW.T

    def mixed_filters(self) -> Tensor:
        """The combination of four filters that fits the probes best by least squares."""
        m, W = largest(self.M, len(self.M))
        YW = self.R @ W
        filters = torch.stack([m / (m**2 + (d * m[TOP - 1]) ** 2) for d in (0.02, 0.1, 0.4, 1.3)])
        fits = torch.stack([((YW * f) @ (W.T @ self.XHZ)).flatten() for f in filters], dim=1)
        weights = torch.linalg.lstsq(fits, self.QHZ.reshape(-1, 1), driver="gelsd").solution[:, 0]
        return (YW * (weights @ filters)) @ YW.T

    def exact_on_range(self, C: Tensor) -> Tensor:
        """The core nearest to C that is exact on the bases among X."""
        T = self.T[:, self.random :]
        D = self.R[:, self.random :] - C @ T
        half = D @ T.T - T @ (T.T @ D) @ T.T / 2
        return C + half + half.T


def variants(exact: Exact, s: int, seed: int) -> Iterator[tuple[str, list[float]]]:
    """Each variant's name and figures."""

    def take(*shares: float, probes_too: bool = False) -> Measured:
        sizes = [round(s * share) for share in shares[1:]]
        return Measured.take(exact, (s - sum(sizes), *sizes), seed, probes_too)

    for rounds, shares in (("one round", (1.0,)), ("two rounds", (0.5, 0.5))):
        found = take(*shares)
        plain = found.nystrom()
        if len(shares) == 1:
            yield rounds, found.figures(plain)
        else:
            yield f"{rounds}, the filter alone", found.figures(plain)
            yield f"{rounds}, exact on the range", found.figures(found.exact_on_range(plain))
            for weight in (3.0, 0.3, 0.1):
                figures = found.figures(found.nystrom(weight=weight))
                yield f"{rounds}, random vectors times {weight:g}", figures
        yield f"{rounds}, the best δ *", found.figures(found.nystrom(oracle=True))
        for p in (1.0, 1.5, 4.0):
            yield f"{rounds}, filter of power {p:g}", found.figures(found.nystrom(p))
        yield f"{rounds}, four filters fitted", found.figures(found.mixed_filters())
        yield f"{rounds}, Rayleigh quotients *", found.figures(plain, quotients=True)
        yield f"{rounds}, Rayleigh-Ritz on the range of Y *", found.figures(found.C)
        found = take(*shares, probes_too=True)
        figures = found.figures(found.nystrom(oracle=True))
        yield f"{rounds}, the best δ, probes as test vectors *", figures
    for shares in ((0.6, 0.4), (0.7, 0.3), (0.8, 0.2), (0.4, 0.3, 0.3), (1 / 3,) * 3, (0.25,) * 4):
        found = take(*shares)
        name = "rounds of " + ", ".join(f"{share:.0%}" for share in shares)
        figures = found.figures(found.exact_on_range(found.nystrom()))
        yield f"{name}, exact on the range", figures
