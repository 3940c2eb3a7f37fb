"""Central differences along a vector, of whatever the parameters of a network determine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from skerch.curvature.strategies.linear_map import Tensors

STEPS = {  # near the cube root of eps: the difference errs by h², its rounding by eps / h
    torch.float64: 6e-6,
    torch.float32: 5e-3,
    torch.bfloat16: 0.2,
    torch.float16: 5e-2,
}


def central_difference(
    function: Callable[[], Sequence[Tensor]], params: Tensors, vector: Tensors, step: float
) -> tuple[Tensor, ...]:
    """‖v‖ (f(θ + h u) - f(θ - h u)) / 2h for u = v / ‖v‖, a step h and tensors f(θ).

    It approximates the derivative of f along v, as far from θ for every v. The parameters have
    other memory meanwhile, so that they are the same to the bit afterwards, also after an
    exception. Half precisions are subtracted in float32.
    """
    norm = math.hypot(*(float(torch.linalg.vector_norm(v.double())) for v in vector))
    centers = [p.data for p in params]

    def at(h: float) -> list[Tensor]:
        for p, center, v in zip(params, centers, vector, strict=True):
            moved = _wide(center).add(_wide(v), alpha=h / norm if norm else 0.0)
            p.data = moved.to(center.dtype)
        return [_wide(t.detach()) for t in function()]

    try:
        ahead, behind = at(step), at(-step)
    finally:
        for p, center in zip(params, centers, strict=True):
            p.data = center
    slope = norm / (2 * step)
    return tuple((a - b) * slope for a, b in zip(ahead, behind, strict=True))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
