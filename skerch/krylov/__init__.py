"""Krylov methods and estimators for symmetric operators that are known by their products."""

from skerch.krylov.backend import LinAlgBackend, SingleDeviceBackend
from skerch.krylov.distributed import DistributedBackend, ShardedOperator
from skerch.krylov.exchangeable import xnystrace, xtrace
from skerch.krylov.lanczos import lanczos, lanczos_tridiagonal
from skerch.krylov.results import EigenResult, LanczosTridiag, TraceResult
from skerch.krylov.trace import hutch_plus_plus, hutchinson, trace

__all__ = [
    "DistributedBackend",
    "EigenResult",
    "LanczosTridiag",
    "LinAlgBackend",
    "ShardedOperator",
    "SingleDeviceBackend",
    "TraceResult",
    "hutch_plus_plus",
    "hutchinson",
    "lanczos",
    "lanczos_tridiagonal",
    "trace",
    "xnystrace",
    "xtrace",
]
