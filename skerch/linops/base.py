"""The linear operator contract: a shape, a dtype, a device, and `A @ X` on vectors and blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import overload

import torch
from torch import Tensor

from skerch.errors import ShapeError, SkerchError


class LinearOperator(ABC):
    """A real linear map A of shape (m, n) that is known by its products only.

    `A @ x` takes a tensor of shape (n,) or (n, b), of the operator's dtype, and returns (m,) or
    (m, b). Subclasses implement `_matmul` on blocks, and `_rmatmul` where an adjoint exists;
    those that equal their own adjoint set `self_adjoint` and need no `_rmatmul`. `A + B`, `A - B`,
    `-A`, `2.0 * A`, `A @ B` and `A.T` are operators again (`skerch.linops.algebra`).

    Raises `SkerchError` for a dtype that is not real floating point, and `ShapeError` for operands
    or results of another shape or dtype than the contract's.
    """

    self_adjoint: bool = False

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        if not dtype.is_floating_point:
            raise SkerchError(
                f"{type(self).__name__} of dtype {dtype}: only real floating point is supported; "
                "convert to torch.float32 or torch.float64."
            )
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = dtype
        self.device = torch.device(device)

    @abstractmethod
    def _matmul(self, X: Tensor) -> Tensor:
        """A X for X of shape (n, b)."""

    def _rmatmul(self, X: Tensor) -> Tensor:
        """Aᵀ X for X of shape (m, b)."""
        if self.self_adjoint:
            return self._matmul(X)
        raise SkerchError(
            f"{self!r} has no adjoint product; give it one, or declare self_adjoint if A = Aᵀ."
        )

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: LinearOperator) -> LinearOperator: ...
    def __matmul__(self, other: Tensor | LinearOperator) -> Tensor | LinearOperator:
        if isinstance(other, LinearOperator):
            from skerch.linops.algebra import ProductOperator

            return ProductOperator(self, other)
        if not isinstance(other, Tensor):
            return NotImplemented
        return self._apply(other, adjoint=False)

    def _apply(self, X: Tensor, adjoint: bool) -> Tensor:
        """Check a vector or block against the contract, and multiply it."""
        result_rows, rows = self.shape[::-1] if adjoint else self.shape
        name = f"{type(self).__name__}{' (adjoint)' if adjoint else ''}"
        if X.ndim not in (1, 2) or X.shape[0] != rows:
            raise ShapeError(
                f"{name} of shape {self.shape} multiplies tensors of shape ({rows},) or "
                f"({rows}, b), not {tuple(X.shape)}."
            )
        if X.dtype != self.dtype:
            raise ShapeError(
                f"{name} of shape {self.shape} and dtype {self.dtype} got a tensor of shape "
                f"{tuple(X.shape)} and dtype {X.dtype}; convert one with .to(...)."
            )
        block = X[:, None] if X.ndim == 1 else X
        Y = self._rmatmul(block) if adjoint else self._matmul(block)
        if Y.shape != (result_rows, block.shape[1]) or Y.dtype != self.dtype:
            raise ShapeError(
                f"{name} of shape {self.shape} and dtype {self.dtype} returned a tensor of shape "
                f"{tuple(Y.shape)} and dtype {Y.dtype} for one of shape {tuple(block.shape)}."
            )
        return Y[:, 0] if X.ndim == 1 else Y

    def frozen(self) -> AbstractContextManager[None]:
        """A context within which A stays as it is, so that products may share preparations.

        Sums and multiples pass it on to their parts.
        """
        return nullcontext()

    @property
    def T(self) -> LinearOperator:
        """The adjoint Aᵀ, of shape (n, m)."""
        if self.self_adjoint:
            return self
        from skerch.linops.algebra import AdjointOperator

        return AdjointOperator(self)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        from skerch.linops.algebra import SumOperator

        return SumOperator(self, other)

    def __mul__(self, scale: float) -> LinearOperator:
        from skerch.linops.algebra import ScaledOperator

        return ScaledOperator(self, scale)

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + -other

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"
