"""Sketched eigendecompositions of neural-network Hessians, on a laptop and on Slurm.

The names below are imported when they are first used, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skerch.curvature import HessianOperator
    from skerch.decompositions.seigh import EighResult, seigh
    from skerch.decompositions.ssvd import SvdResult, ssvd
    from skerch.errors import SkerchError
    from skerch.linops import LinearOperator, aslinearoperator, to_scipy

    load: Any

__version__ = "0.1.0.dev0"

_MODULES = {
    "HessianOperator": "skerch.curvature",
    "EighResult": "skerch.decompositions.seigh",
    "seigh": "skerch.decompositions.seigh",
    "SvdResult": "skerch.decompositions.ssvd",
    "ssvd": "skerch.decompositions.ssvd",
    "SkerchError": "skerch.errors",
    "LinearOperator": "skerch.linops",
    "aslinearoperator": "skerch.linops",
    "to_scipy": "skerch.linops",
    "load": "skerch.jobs.commands.load",  # the one name from above the library
}
__all__ = [
    "EighResult",
    "HessianOperator",
    "LinearOperator",
    "SkerchError",
    "SvdResult",
    "aslinearoperator",
    "load",
    "seigh",
    "ssvd",
    "to_scipy",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'skerch' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
