"""Krylov methods and estimators for symmetric operators that are known by their products."""

from skerch.krylov.backend import LinAlgBackend, SingleDeviceBackend
from skerch.krylov.cg import conjugate_gradients
from skerch.krylov.damping import choose_damping
from skerch.krylov.deflated_inverse import DeflatedInverse
from skerch.krylov.density import spectral_density
from skerch.krylov.diagonal import diagonal, frobenius_norm, row_norms
from skerch.krylov.distributed import DistributedBackend, ShardedOperator
from skerch.krylov.exchangeable import xnystrace, xtrace
from skerch.krylov.lanczos import lanczos, lanczos_tridiagonal
from skerch.krylov.power_iteration import deflated_power_iteration, power_iteration_one
from skerch.krylov.results import (
    CGResult,
    DampingResult,
    DiagonalResult,
    EigenResult,
    LanczosTridiag,
    SpectralDensityResult,
    TraceResult,
)
from skerch.krylov.trace import hutch_plus_plus, hutchinson, trace

__all__ = [
    "CGResult",
    "DampingResult",
    "DeflatedInverse",
    "DiagonalResult",
    "DistributedBackend",
    "EigenResult",
    "LanczosTridiag",
    "LinAlgBackend",
    "ShardedOperator",
    "SingleDeviceBackend",
    "SpectralDensityResult",
    "TraceResult",
    "choose_damping",
    "conjugate_gradients",
    "deflated_power_iteration",
    "diagonal",
    "frobenius_norm",
    "hutch_plus_plus",
    "hutchinson",
    "lanczos",
    "lanczos_tridiagonal",
    "power_iteration_one",
    "row_norms",
    "spectral_density",
    "trace",
    "xnystrace",
    "xtrace",
]
