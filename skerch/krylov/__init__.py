"""Krylov methods and estimators for symmetric operators that are known by their products."""

from skerch.krylov.backend import LinAlgBackend, SingleDeviceBackend

__all__ = [
    "LinAlgBackend",
    "SingleDeviceBackend",
]
