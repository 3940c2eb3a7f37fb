"""Krylov methods and estimators for symmetric operators that are known by their products."""

from skerch.krylov.backend import LinAlgBackend, SingleDeviceBackend
from skerch.krylov.lanczos import lanczos, lanczos_tridiagonal
from skerch.krylov.results import EigenResult, LanczosTridiag

__all__ = [
    "EigenResult",
    "LanczosTridiag",
    "LinAlgBackend",
    "SingleDeviceBackend",
    "lanczos",
    "lanczos_tridiagonal",
]
