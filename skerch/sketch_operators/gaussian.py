"""Gaussian test matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skerch.randomness import stream
from skerch.sketch_operators.base import RowwiseSketch


class Gaussian(RowwiseSketch):
    """S of shape (s, N) with independent N(0, 1/s) entries.

    Standard Gaussian vectors, such as probes, are √s times its rows. Halko, Martinsson and Tropp
    2011, section 4.1.
    """

    def _draw(self, row: int, out: NDArray[np.float32]) -> None:
        stream(self.seed, self.role, row).standard_normal(dtype=np.float32, out=out)
