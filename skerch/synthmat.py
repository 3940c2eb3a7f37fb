"""Synthetic matrices with known spectra, to try a sketch on: TYUC 2019, section 7.3.1.

Tropp, Yurtsever, Udell and Cevher, "Streaming low-rank matrix approximation with an application to
scientific simulation", SIAM J. Sci. Comput. 41(4), 2019. Theirs have n = 1000 and rank 5, 10 or 20:

    low rank + noise    ξ = 1e-4 (low), 1e-2 (medium), 1e-1 (high)
    polynomial decay    p = 0.5 (slow), 1 (medium), 2 (fast)
    exponential decay   q = 0.01 (slow), 0.1 (medium), 0.5 (fast)

Their decaying matrices are diagonal; here they get Haar-distributed bases, so that no sketch
profits from the coordinates. Everything is float64, and a pure function of its arguments.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from skerch.errors import ShapeError, SkerchError
from skerch.randomness import stream


def polynomial_decay(n: int, rank: int, p: float) -> Tensor:
    """The spectrum 1, …, 1 (`rank` ones), 2^-p, 3^-p, …, (n - rank + 1)^-p, of shape (n,)."""
    _check_rank(n, rank)
    tail = torch.arange(2, n - rank + 2, dtype=torch.float64, device="cpu") ** -p
    return torch.cat([torch.ones(rank, dtype=torch.float64, device="cpu"), tail])


def exponential_decay(n: int, rank: int, q: float) -> Tensor:
    """The spectrum 1, …, 1 (`rank` ones), 10^-q, 10^-2q, …, 10^-(n - rank)q, of shape (n,)."""
    _check_rank(n, rank)
    tail = 10.0 ** (-q * torch.arange(1, n - rank + 1, dtype=torch.float64, device="cpu"))
    return torch.cat([torch.ones(rank, dtype=torch.float64, device="cpu"), tail])


def symmetric(
    spectrum: Tensor, seed: int, signs: Literal["positive", "alternate", "random"] = "positive"
) -> tuple[Tensor, Tensor]:
    """(H, λ): H = W diag(λ) Wᵀ of shape (n, n), W Haar-distributed, |λ| = spectrum (n,).

    signs: the eigenvalues are all positive, alternate from a positive first one, or have random
        signs.
    """
    n = len(spectrum)
    sign = torch.ones(n, dtype=torch.float64, device="cpu")
    if signs == "alternate":
        sign[1::2] = -1
    elif signs == "random":
        sign = torch.from_numpy(stream(seed, "synthetic", 2).choice([-1.0, 1.0], size=n))
    elif signs != "positive":
        raise SkerchError(f"signs is {signs!r}; choose positive, alternate or random.")
    eigenvalues = sign * spectrum
    W = _haar(n, n, seed, 0)
    H = (W * eigenvalues) @ W.T
    return (H + H.T) / 2, eigenvalues


def general(spectrum: Tensor, shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """(A, σ): A = U diag(σ) Vᵀ of shape (m, n), U and V Haar-distributed, σ the spectrum (r,).

    Raises `ShapeError` if r > min(m, n).
    """
    m, n = shape
    if len(spectrum) > min(shape):
        raise ShapeError(f"A matrix of shape {shape} has no {len(spectrum)} singular values.")
    U, V = _haar(m, len(spectrum), seed, 0), _haar(n, len(spectrum), seed, 1)
    return (U * spectrum) @ V.T, spectrum


def lowrank_noise(
    shape: tuple[int, int], rank: int, noise: float, seed: int, *, sym: bool = False
) -> Tensor:
    """diag(1, …, 1, 0, …, 0) + noise, of shape (m, n), with `rank` ones and ξ = `noise`.

    The noise is (ξ/n) G Gᵀ, positive semidefinite, if `sym`; else ξ/√max(m, n) G; G is standard
    Gaussian and of shape (m, n). Its norm is of the order of ξ either way. The exact spectrum is
    that of a draw: take `torch.linalg.eigvalsh` or `svdvals`.
    """
    m, n = shape
    _check_rank(min(shape), rank)
    if sym and m != n:
        raise ShapeError(f"Shape {shape} is not square: no symmetric matrix has it.")
    G = torch.from_numpy(stream(seed, "synthetic", 3).standard_normal(shape))
    A = noise / n * (G @ G.T) if sym else noise / max(shape) ** 0.5 * G
    A = (A + A.T) / 2 if sym else A  # a product's two halves may differ in their last bits
    A.diagonal()[:rank] += 1
    return A


def _haar(n: int, k: int, seed: int, index: int) -> Tensor:
    """k columns of a uniformly distributed orthogonal n x n matrix.

    The Q of a Gaussian matrix is, once R's diagonal is positive (Mezzadri 2007).
    """
    gaussian = torch.from_numpy(stream(seed, "synthetic", index).standard_normal((n, k)))
    Q: Tensor
    R: Tensor
    Q, R = torch.linalg.qr(gaussian)
    return Q * R.diagonal().sign()


def _check_rank(n: int, rank: int) -> None:
    if not 0 <= rank <= n:
        raise SkerchError(f"rank is {rank}; a spectrum of {n} values has between 0 and {n} ones.")
