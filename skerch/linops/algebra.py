"""Operators made of operators (adjoint, sum, scale, product) or of factors (diagonal, low rank).

Their products cost what their parts cost; nothing is ever formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor

from skerch.errors import ShapeError
from skerch.linops.arrays import as_tensor
from skerch.linops.base import LinearOperator


def _require_same_space(left: LinearOperator, right: LinearOperator, sign: str) -> None:
    if left.dtype != right.dtype or left.device != right.device:
        raise ShapeError(
            f"Operators of shapes {left.shape} {sign} {right.shape} have dtypes {left.dtype} and "
            f"{right.dtype} on devices {left.device} and {right.device}; they must agree."
        )


class AdjointOperator(LinearOperator):
    """Aᵀ, of shape (n, m), for A of shape (m, n); its own `.T` is A."""

    def __init__(self, operator: LinearOperator):
        super().__init__(operator.shape[::-1], operator.dtype, operator.device)
        self.operator = operator
        self.self_adjoint = operator.self_adjoint

    def _matmul(self, X: Tensor) -> Tensor:
        return self.operator._apply(X, adjoint=True)

    def _rmatmul(self, X: Tensor) -> Tensor:
        return self.operator @ X

    @property
    def T(self) -> LinearOperator:
        return self.operator


class SumOperator(LinearOperator):
    """A + B for two operators of one shape, dtype and device; self-adjoint if both are.

    Raises `ShapeError` if they differ.
    """

    def __init__(self, left: LinearOperator, right: LinearOperator):
        if left.shape != right.shape:
            raise ShapeError(f"Shapes {left.shape} and {right.shape} differ: there is no sum.")
        _require_same_space(left, right, "+")
        super().__init__(left.shape, left.dtype, left.device)
        self.left, self.right = left, right
        self.self_adjoint = left.self_adjoint and right.self_adjoint

    @contextmanager
    def frozen(self) -> Iterator[None]:
        with self.left.frozen(), self.right.frozen():
            yield

    def _matmul(self, X: Tensor) -> Tensor:
        return self.left @ X + self.right @ X

    def _rmatmul(self, X: Tensor) -> Tensor:
        return self.left.T @ X + self.right.T @ X


class ScaledOperator(LinearOperator):
    """c A for a real number c; self-adjoint if A is."""

    def __init__(self, operator: LinearOperator, scale: float):
        super().__init__(operator.shape, operator.dtype, operator.device)
        self.operator, self.scale = operator, float(scale)
        self.self_adjoint = operator.self_adjoint

    def frozen(self) -> AbstractContextManager[None]:
        return self.operator.frozen()

    def _matmul(self, X: Tensor) -> Tensor:
        return self.scale * (self.operator @ X)

    def _rmatmul(self, X: Tensor) -> Tensor:
        return self.scale * (self.operator.T @ X)


class ProductOperator(LinearOperator):
    """A B, of shape (m, n), for A of shape (m, p) and B of shape (p, n), of one dtype and device.

    Raises `ShapeError` if they do not fit. Never declared self-adjoint.
    """

    def __init__(self, left: LinearOperator, right: LinearOperator):
        if left.shape[1] != right.shape[0]:
            raise ShapeError(
                f"Shapes {left.shape} and {right.shape} have no product: {left.shape[1]} columns "
                f"meet {right.shape[0]} rows."
            )
        _require_same_space(left, right, "@")
        super().__init__((left.shape[0], right.shape[1]), left.dtype, left.device)
        self.left, self.right = left, right

    def _matmul(self, X: Tensor) -> Tensor:
        return self.left @ (self.right @ X)

    def _rmatmul(self, X: Tensor) -> Tensor:
        return self.right.T @ (self.left.T @ X)


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
