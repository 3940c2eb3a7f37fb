"""Operators that hold what they are: a matrix, a diagonal, factors of low rank, or a callable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skerch.errors import ShapeError
from skerch.linops.arrays import as_tensor
from skerch.linops.base import LinearOperator

Matmul = Callable[[Tensor], Tensor]


class DenseOperator(LinearOperator):
    """A matrix (m, n) in memory. Raises `ShapeError` if it is no matrix."""

    def __init__(self, matrix: Tensor, *, self_adjoint: bool = False):
        if matrix.ndim != 2:
            raise ShapeError(
                f"A matrix has shape (m, n), not {tuple(matrix.shape)}; the matrix of a diagonal d "
                "of shape (n,) is skerch.linops.DiagonalOperator(d)."
            )
        super().__init__((matrix.shape[0], matrix.shape[1]), matrix.dtype, matrix.device)
        self.matrix, self.self_adjoint = matrix, self_adjoint

    def _matmul(self, X: Tensor) -> Tensor:
        return self.matrix @ X

    def _rmatmul(self, X: Tensor) -> Tensor:
        return self.matrix.mT @ X  # of sparse ones too, which have no .T


class FunctionOperator(LinearOperator):
    """A callable X ↦ A X on blocks (n, b), or on vectors (n,) if `vectorwise`.

    `adjoint`, a callable of the same kind, gives X ↦ Aᵀ X.
    """

    def __init__(
        self,
        function: Matmul,
        shape: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        adjoint: Matmul | None = None,
        vectorwise: bool = False,
        self_adjoint: bool = False,
    ):
        super().__init__(shape, dtype, device)
        self.function, self.adjoint = function, adjoint
        self.vectorwise, self.self_adjoint = vectorwise, self_adjoint

    def _matmul(self, X: Tensor) -> Tensor:
        return self._call(self.function, X)

    def _rmatmul(self, X: Tensor) -> Tensor:
        return super()._rmatmul(X) if self.adjoint is None else self._call(self.adjoint, X)

    def _call(self, function: Matmul, X: Tensor) -> Tensor:
        if not self.vectorwise:
            return as_tensor(function(X), device=self.device)
        return torch.stack([as_tensor(function(x), device=self.device) for x in X.T], dim=1)


class DiagonalOperator(LinearOperator):
    """diag(d), of shape (n, n), for d of shape (n,), a tensor or array.

    Raises `ShapeError` if d is no vector.
    """

    self_adjoint = True

    def __init__(self, diagonal: Any):
        diagonal = as_tensor(diagonal)
        if diagonal.ndim != 1:
            raise ShapeError(f"A diagonal has shape (n,), not {tuple(diagonal.shape)}.")
        super().__init__((len(diagonal), len(diagonal)), diagonal.dtype, diagonal.device)
        self.diagonal: Tensor = diagonal

    def _matmul(self, X: Tensor) -> Tensor:
        return self.diagonal[:, None] * X


class LowRankOperator(LinearOperator):
    """U diag(values) Vᵀ, of shape (m, n), for tensors or arrays U (m, k), values (k,), V (n, k).

    Without V it is U diag(values) Uᵀ, which is self-adjoint: an eigendecomposition, as the other
    is a singular value decomposition. The factors need not be orthonormal. Raises `ShapeError`
    for factors whose shapes, dtypes or devices do not fit.
    """

    def __init__(self, U: Any, values: Any, V: Any = None):
        self.self_adjoint = V is None
        U, values, V = as_tensor(U), as_tensor(values), as_tensor(U if V is None else V)
        shapes = tuple(U.shape), tuple(values.shape), tuple(V.shape)
        if [len(shape) for shape in shapes] != [2, 1, 2] or len({s[-1] for s in shapes}) != 1:
            raise ShapeError(
                "Factors U, values and V have shapes (m, k), (k,) and (n, k), not "
                f"{shapes[0]}, {shapes[1]} and {shapes[2]}."
            )
        if len({(t.dtype, t.device) for t in (U, values, V)}) != 1:
            raise ShapeError(
                f"Factors U {shapes[0]}, values {shapes[1]} and V {shapes[2]} have dtypes "
                f"{U.dtype}, {values.dtype} and {V.dtype} on devices {U.device}, {values.device} "
                f"and {V.device}; they must agree."
            )
        super().__init__((shapes[0][0], shapes[2][0]), U.dtype, U.device)
        self.U: Tensor = U
        self.V: Tensor = V
        self.values: Tensor = values

    def _matmul(self, X: Tensor) -> Tensor:
        return self.U @ (self.values[:, None] * (self.V.T @ X))

    def _rmatmul(self, X: Tensor) -> Tensor:
        return self.V @ (self.values[:, None] * (self.U.T @ X))
