"""How far two ways to compute one product may differ by rounding alone."""

from __future__ import annotations

import math

import torch


def rounding(dtype: torch.dtype) -> float:
    """√eps of a dtype, the relative error of a product that rounding may explain.

    It is 3.5e-4 for float32, and 1e-6 at least, as sums of many terms lose some digits.
    """
    return max(math.sqrt(torch.finfo(dtype).eps), 1e-6)
