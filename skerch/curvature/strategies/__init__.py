"""Strategies: how a linear map of one vector is applied to a block of vectors.

A strategy is a module of this folder with `prepare(A) -> Product`: of a `LinearMap` A it makes the
function of a block of c vectors, one tensor (c, *shape) for each part, that returns A times them in
the same form. It knows nothing of networks and derivatives. `STRATEGIES` has them by name; a new
one is a file and an entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from reprlib import repr as short
from typing import TYPE_CHECKING

from skerch.errors import SkerchError

if TYPE_CHECKING:
    from skerch.curvature.strategies.linear_map import LinearMap, Product

CHUNK_SIZES = (8, 32, 64, 128, 256)


@dataclass(frozen=True)
class Strategy:
    """How many vectors it takes at once where nothing else is said."""

    chunk_size: int


STRATEGIES = {"loop": Strategy(1), "batched": Strategy(32), "tape": Strategy(64)}


@dataclass(frozen=True)
class Choice:
    """How products are computed: by which strategy, for how many vectors at once at most."""

    strategy: str
    chunk_size: int
    memory_format: str = "preserve"


def prepare(strategy: str, A: LinearMap) -> Product:
    """The product with blocks by a strategy; raises its errors where it cannot serve the map."""
    module = import_module(f"{__name__}.{strategy}")
    product: Product = module.prepare(A)
    return product


def check_strategy(strategy: str) -> None:
    """Refuse a strategy that is neither "auto" nor known."""
    if strategy not in ("auto", *STRATEGIES):
        raise SkerchError(
            f"Unknown strategy {short(strategy)}; choose auto, {', '.join(STRATEGIES)}."
        )


def candidates(block_size: int, strategy: str, chunk_size: int | None) -> list[Choice]:
    """The choices for blocks of `block_size` vectors: what is given, or for "auto" all that differ.

    Strategies that vectorise come in chunks of `chunk_size` vectors, or else of several sizes.
    """
    if strategy != "auto":
        return [Choice(strategy, chunk_size or STRATEGIES[strategy].chunk_size)]
    sizes = sorted({min(s, block_size) for s in ([chunk_size] if chunk_size else CHUNK_SIZES)})
    vectorised = [name for name in STRATEGIES if name != "loop"] if block_size > 1 else []
    return [Choice("loop", 1), *(Choice(name, size) for name in vectorised for size in sizes)]
