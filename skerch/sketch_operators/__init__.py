"""Random maps S of shape (s, N) by kind: test vectors by `rows`, compressions by `@`."""

from __future__ import annotations

import torch

from skerch.errors import SkerchError
from skerch.sketch_operators.base import SketchOperator
from skerch.sketch_operators.gaussian import Gaussian
from skerch.sketch_operators.rademacher import Rademacher
from skerch.sketch_operators.sparse_sign import SparseSign
from skerch.sketch_operators.ssrft import SSRFT

KINDS: dict[str, type[SketchOperator]] = {
    "gaussian": Gaussian,
    "rademacher": Rademacher,
    "sparse_sign": SparseSign,
    "ssrft": SSRFT,
}


def make(
    kind: str,
    shape: tuple[int, int],
    *,
    seed: int,
    role: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> SketchOperator:
    """The sketch operator of a kind (a key of `KINDS`); the arguments are `SketchOperator`'s.

    Raises:
        SkerchError: for a kind that is not known.
    """
    if kind not in KINDS:
        raise SkerchError(f"Unknown sketch kind {kind!r}; the kinds are {', '.join(KINDS)}.")
    return KINDS[kind](shape, seed=seed, role=role, dtype=dtype, device=device)
