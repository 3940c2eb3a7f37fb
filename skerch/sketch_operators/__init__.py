"""Random maps S of shape (s, N) by kind: test vectors by `rows`, compressions by `@`.

A kind is one file of this folder and one entry of `KINDS`, which imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from skerch.errors import SkerchError

if TYPE_CHECKING:
    from skerch.sketch_operators.base import SketchOperator

KINDS = {
    "gaussian": "Gaussian",
    "rademacher": "Rademacher",
    "sparse_sign": "SparseSign",
    "ssrft": "SSRFT",
}


def check_kind(kind: str) -> None:
    """Refuse a kind that is not known, with those that are."""
    if kind not in KINDS:
        raise SkerchError(f"Unknown sketch kind {short(kind)}; the kinds are {', '.join(KINDS)}.")


def make(kind: str, shape: tuple[int, int], **options: Any) -> SketchOperator:
    """The sketch operator of a kind (a key of `KINDS`); the arguments are `SketchOperator`'s.

    Raises:
        SkerchError: for a kind that is not known.
    """
    check_kind(kind)
    module = import_module(f"skerch.sketch_operators.{kind}")
    operator: SketchOperator = getattr(module, KINDS[kind])(shape, **options)
    return operator
