"""Matrices with known spectra, and a meter of memory, for the tests of this folder."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

SPECTRA = {
    "decaying": lambda n: 10.0 ** (-0.05 * torch.arange(n)),
    "polynomial": lambda n: 1 / (1 + torch.arange(n, dtype=torch.float64)) ** 2,
    "flat": lambda n: torch.linspace(1, 1.5, n),
    "indefinite": lambda n: torch.linspace(-0.9, 1, n) ** 3,
    "rank one": lambda n: 5.0 * (torch.arange(n) == 0),
}


def matrix(spectrum, n=100, seed=0):
    """A symmetric matrix with a spectrum of that name, or these eigenvalues, and random vectors."""
    values = SPECTRA[spectrum](n) if isinstance(spectrum, str) else spectrum
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(square).Q
    A = (Q * values.double()) @ Q.T
    return (A + A.T) / 2


def peak_bytes(work):
    """What the memory of this process grew by at most while it worked."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _kilobytes("VmRSS")
    work()
    return (_kilobytes("VmHWM") - before) * 1024


def _kilobytes(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))
