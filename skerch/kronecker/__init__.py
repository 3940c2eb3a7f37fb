"""Kronecker-factored approximations of curvature: factors, their inverses, one save layout.

The names below are imported when they are first used: the methods' table needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skerch.kronecker.files import load, save
    from skerch.kronecker.fit import kronecker
    from skerch.kronecker.operator import KroneckerOperator

_MODULES = {"KroneckerOperator": "operator", "kronecker": "fit", "load": "files", "save": "files"}
__all__ = ["KroneckerOperator", "kronecker", "load", "save"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'skerch.kronecker' has no attribute {name!r}")
    return getattr(import_module(f"skerch.kronecker.{_MODULES[name]}"), name)
