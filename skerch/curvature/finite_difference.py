"""Central differences along a vector, of whatever the parameters of a network determine.

A curvature can be had by them, or by automatic differentiation.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from reprlib import repr as short
from typing import Any, Literal

import torch
from torch import Tensor

from skerch.curvature import checks
from skerch.curvature.operator import BatchCurvature, Check, LossCurvature
from skerch.curvature.strategies.linear_map import Tensors
from skerch.errors import SkerchError

STEPS = {  # near the cube root of eps: the difference errs by h², its rounding by eps / h
    torch.float64: 6e-6,
    torch.float32: 5e-3,
    torch.bfloat16: 0.2,
    torch.float16: 5e-2,
}


class DifferentiableCurvature(LossCurvature):
    """A curvature by automatic differentiation or by differences.

    Args:
        method: "autograd" or "finite_difference".
        fd_eps: the step h of differences; None for that of the dtype (`STEPS`).
        other arguments: those of `LossCurvature`.
    """

    checks_of_differences: tuple[Check, ...] = checks.OF_ANY

    def __init__(
        self,
        *arguments: Any,
        method: Literal["autograd", "finite_difference"] = "autograd",
        fd_eps: float | None = None,
        **options: Any,
    ):
        super().__init__(*arguments, **options)
        self.method = method
        self._fd_eps = fd_eps
        if fd_eps is not None and not fd_eps > 0:
            raise SkerchError(f"fd_eps is {fd_eps}; it is the length of a step, above 0.")
        if method == "finite_difference":
            if self.strategy not in ("auto", "loop"):
                raise SkerchError(
                    f"Strategy {self.strategy} differentiates, and finite differences go one "
                    "vector after the other; leave it out, or set it to loop."
                )
            self.strategy, self.derivatives = "loop", 1
            self.checks = self.checks_of_differences

    @property
    def fd_eps(self) -> float:
        """h, the step of finite differences."""
        return self._fd_eps or STEPS[self.precision]

    def of_batch(self, batch: Any, memory_format: str) -> BatchCurvature:
        """v ↦ A_b v by the operator's method."""
        if self.method == "autograd":
            return self._by_autograd(batch, memory_format)
        if self.method == "finite_difference":
            return self._by_difference(batch, memory_format)
        raise SkerchError(
            f"{type(self).__name__} has an unknown method {short(self.method)}; choose autograd or "
            "finite_difference."
        )

    @abstractmethod
    def _by_autograd(self, batch: Any, memory_format: str) -> BatchCurvature:
        """A_b by automatic differentiation."""

    @abstractmethod
    def _by_difference(self, batch: Any, memory_format: str) -> BatchCurvature:
        """A_b by differences with step `fd_eps`."""


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
