"""The Kronecker-factored methods: one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """What is known of a method."""

    kind: str  # module.Class
    corrected: bool | None = False  # by default; None where there is nothing to correct
    passes: int = 1  # over the data for factors, by default


METHODS = {
    "kfac": Row("kfac.KFAC"),
    "ekfac": Row("kfac.KFAC", corrected=True),
    "tkfac": Row("tkfac.TKFAC"),
    "shampoo": Row("shampoo.Shampoo"),
    "nearest": Row("nearest.Nearest", passes=6),
    "autocorrelation": Row("autocorrelation.Autocorrelation", corrected=None),
}


def make(name: str, **options: Any) -> Any:
    """The method of a name."""
    from importlib import import_module

    module, kind = METHODS[name].kind.split(".")
    return getattr(import_module(f"skerch.kronecker.methods.{module}"), kind)(**options)
