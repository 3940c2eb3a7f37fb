"""What else could be done with the same matvecs: variants of `nystrom` on an exact Hessian.

Medians over three seeds on mnist_mini, with Gaussian test vectors, 30 probes besides. Those marked
* need matvecs that are not counted: they are limits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.exact import CACHE, TOP, Exact, load_exact
from benchmarks.harness import Benchmark, Options, say, table
from benchmarks.tables.accuracy import SEEDS, STEP
from skerch.decompositions.recoveries.core import largest
from skerch.decompositions.recoveries.nystrom import FILTER_GRID

BENCHMARK = Benchmark("docs/accuracy.md", make="accuracy")
Filter = Callable[[Tensor, Tensor], Tensor]  # f(|m|, δ) times the sign of m
Eigen = tuple[Tensor, Tensor]  # values, and vectors in the basis Q


def measure(options: Options) -> Iterator[str]:
    """A table a budget, of a row a variant; --quick takes one seed and the smaller budget."""
    exact = load_exact(options.root, STEP, CACHE)
    for s in (442,) if options.quick else (710, 442):
        found = defaultdict(list)
        for seed in SEEDS[: 1 if options.quick else None]:
            for name, figures in variants(exact, s, seed):
                say(f"{s}, seed {seed}, {name}")
                found[name].append(figures)
        rows = []
        for name, figures in found.items():
            medians = torch.tensor(figures).median(dim=0).values.tolist()
            rows.append([name, *map(format, medians, (".3f", ".1e", "+.1%", ".3f", ".3f"))])
        heads = ("", "residual / best", "top ten", "last 20", "overlap, k/2", "overlap, k")
        yield table(heads, rows, f"mnist_mini, step {STEP}, {TOP} of {s}")


def gaussian(n: int, columns: int, seed: int) -> Tensor:
    """A standard Gaussian matrix."""
    return torch.randn(n, columns, generator=torch.Generator().manual_seed(seed)).double()


def basis(Y: Tensor, against: Tensor, columns: int) -> Tensor:
    """The leading left singular vectors of Y, orthogonal to the columns of `against`."""
    for _ in range(2):
        Y = Y - against @ (against.T @ Y)
    return torch.linalg.svd(Y, full_matrices=False).U[:, :columns]


@dataclass(frozen=True)
class Measured:
    """Y = H X, the basis Q of its range, and the probes Z; all small but X, Y and Q."""

    exact: Exact
    X: Tensor  # (N, s), unit columns, of which the first are random
    random: int
    R: Tensor  # QᵀY
    T: Tensor  # QᵀX
    M: Tensor  # XᵀY
    C: Tensor  # QᵀHQ, which nobody but an oracle has
    top: Tensor  # VᵀQ for the exact eigenvectors V
    QZ: Tensor
    QHZ: Tensor
    XHZ: Tensor

    @classmethod
    def take(cls, exact: Exact, sizes: tuple[int, ...], seed: int, probes_too: bool) -> Measured:
        """Rounds of these sizes: random vectors first, then bases of what the last round found."""
        H, n = exact.H.float(), len(exact.H)

        def product(X: Tensor) -> Tensor:
            return (H @ X.float()).double()

        Z = gaussian(n, 30, seed + 1000)
        HZ = product(Z)
        X = gaussian(n, sizes[0], seed)
        Y = product(X)
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
            exact, X, random, Q.T @ Y, Q.T @ X, X.T @ Y, Q.T @ product(Q),
            exact.vectors.T @ Q, Q.T @ Z, Q.T @ HZ, X.T @ HZ,
        )  # fmt: skip

    def figures(self, eigen: Eigen) -> list[float]:
        """Residual over the best, top ten, mean error of the last 20, overlaps at k/2 and k."""
        values, U, exact = eigen[0][:TOP], eigen[1][:, :TOP], self.exact.eigenvalues
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

    def nystrom(
        self, shape: Filter | None = None, *, oracle: bool = False, weight: float = 1.0
    ) -> Tensor:
        """The core Y W f(m) Wᵀ Yᵀ in the basis Q, of the δ with the least misfit on the probes."""
        shape = shape or power(2)
        scale = torch.ones(len(self.M)).double()
        scale[: self.random] = weight
        m, W = largest(scale[:, None] * self.M * scale, len(self.M))
        W = scale[:, None] * W
        YW, WXHZ = self.R @ W, W.T @ self.XHZ
        resolved = m.abs() > torch.finfo(torch.float32).eps * m[0].abs()

        def misfit(f: Tensor) -> float:
            return float(torch.linalg.norm((YW * f) @ WXHZ - self.QHZ))

        def residual(f: Tensor) -> float:
            return self.figures(largest((YW * f) @ YW.T, TOP))[0]

        filters = [
            torch.where(resolved, m.sign() * shape(m.abs(), delta * m[TOP - 1].abs()), 0.0)
            for delta in torch.cat(
                [FILTER_GRID[0] * 10 ** torch.linspace(-1.5, -0.1, 8).double(), FILTER_GRID]
            )
        ]
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

    def rayleigh(self, C: Tensor) -> Eigen:
        """The eigenvectors of C with their Rayleigh quotients."""
        U = largest(C, TOP)[1]
        return (U * (self.C @ U)).sum(dim=0), U


def power(p: float) -> Filter:
    """f = |m|^(p - 1) / (|m|^p + δ^p), the usual one for p = 2."""
    return lambda m, delta: m ** (p - 1) / (m**p + delta**p)


def variants(exact: Exact, s: int, seed: int) -> Iterator[tuple[str, list[float]]]:
    """Each variant's name and figures."""

    def take(*shares: float, probes_too: bool = False) -> Measured:
        sizes = [round(s * share) for share in shares[1:]]
        return Measured.take(exact, (s - sum(sizes), *sizes), seed, probes_too)

    for rounds, shares in (("one round", (1.0,)), ("two rounds", (0.5, 0.5))):
        found = take(*shares)
        plain = found.nystrom()
        cores: dict[str, Tensor] = {"": plain}
        if len(shares) == 2:
            cores = {
                ", the filter alone": plain,
                ", exact on the range": found.exact_on_range(plain),
            }
            for weight in (3.0, 0.3, 0.1):
                cores[f", random vectors times {weight:g}"] = found.nystrom(weight=weight)
        cores[", the best δ *"] = found.nystrom(oracle=True)
        for p in (1.0, 1.5, 4.0):
            cores[f", filter of power {p:g}"] = found.nystrom(power(p))
        cores[", four filters fitted"] = found.mixed_filters()
        for name, core in cores.items():
            yield rounds + name, found.figures(largest(core, TOP))
        yield f"{rounds}, Rayleigh quotients *", found.figures(found.rayleigh(plain))
        whole = found.figures(largest(found.C, TOP))
        yield f"{rounds}, Rayleigh-Ritz on the range of Y *", whole
        found = take(*shares, probes_too=True)
        best = found.figures(largest(found.nystrom(oracle=True), TOP))
        yield f"{rounds}, the best δ, probes as test vectors *", best
    for shares in ((0.6, 0.4), (0.7, 0.3), (0.8, 0.2), (0.4, 0.3, 0.3), (1 / 3,) * 3, (0.25,) * 4):
        found = take(*shares)
        name = "rounds of " + ", ".join(f"{share:.0%}" for share in shares)
        core = found.exact_on_range(found.nystrom())
        yield f"{name}, exact on the range", found.figures(largest(core, TOP))
