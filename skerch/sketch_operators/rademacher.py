"""Random sign matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skerch.randomness import stream
from skerch.sketch_operators.base import RowwiseSketch


class Rademacher(RowwiseSketch):
    """S of shape (s, N) with independent entries ±1/√s of equal probability.

    Achlioptas 2003, theorem 1.1.
    """

    def _draw(self, row: int, out: NDArray[np.float32]) -> None:
        n = out.shape[0]
        random_bytes = stream(self.seed, self.role, row).bytes(-(-n // 8))
        out[:] = np.unpackbits(np.frombuffer(random_bytes, np.uint8), count=n)
        out *= -2
        out += 1
