"""The linear operator contract: a shape, a dtype, a device, and `A @ X` on vectors and blocks.

Adjoint, sum, multiple and product of operators cost what their parts cost; nothing is ever formed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Number, Real
from typing import Any, ClassVar, overload

import numpy as np
import torch
from torch import Tensor

from skerch.errors import ShapeError, SkerchError
from skerch.linops.arrays import as_tensor, is_array


class LinearOperator(ABC):
    """A real linear map A of shape (m, n) that is known by its products only.

    `A @ x` takes a tensor of shape (n,) or (n, b), of the operator's dtype, and returns (m,) or
    (m, b); `x @ A` likewise, by the adjoint. A complex x has A Re x + i A Im x. NumPy arrays and
    lists are converted to the operator's dtype and device, and the result is a tensor.

    Subclasses implement `_matmul` on blocks, and `_rmatmul` where an adjoint exists; those that
    equal their own adjoint set `self_adjoint` and need no `_rmatmul`.

    `A + B`, `A - B`, `-A`, `2.0 * A`, `A / 2`, `A @ B` and `A.T` are operators again. B may be
    another library's operator, and in sums a matrix too.

    Raises `SkerchError` for a dtype that is not real floating point and for operands without a
    meaning, and `ShapeError` for operands or results of another shape or dtype than the contract's.
    """

    self_adjoint: bool = False
    __array_ufunc__ = None  # NumPy leaves `array + A`, `array @ A`, … to the methods below
    # set by `skerch.linops.adapters`, which imports this class: they make one of another object
    _as_factor: ClassVar[Callable[..., LinearOperator]]
    _as_summand: ClassVar[Callable[..., LinearOperator]]

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
        self.shape_here = self.shape  # rows of results and operands, where processes share them
        self.dtype = dtype
        self.precision = dtype  # in which products are computed; their rounding is its
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
    def __matmul__(self, other: LinearOperator) -> LinearOperator: ...
    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: Any) -> Any: ...
    def __matmul__(self, other: Any) -> Any:
        if is_array(other):
            return self._apply(self._operand(other), adjoint=False)
        return ProductOperator(self, LinearOperator._as_factor(other))

    def __rmatmul__(self, other: Any) -> Any:
        if is_array(other):
            return _transposed(self._apply(_transposed(self._operand(other)), adjoint=True))
        return LinearOperator._as_factor(other) @ self

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise SkerchError(
            f"{self!r} is no array; its entries are A @ torch.eye(n), SciPy takes "
            "skerch.to_scipy(A), and SciPy's B multiplies it as skerch.aslinearoperator(B) @ A."
        )

    def _operand(self, array: Any) -> Tensor:
        """A tensor as it is; another array in the dtype and on the device of the operator."""
        if isinstance(array, Tensor):
            return as_tensor(array)
        X = as_tensor(array, device=self.device)
        return X.to(self.dtype.to_complex() if X.is_complex() else self.dtype)

    def _apply(self, X: Tensor, adjoint: bool) -> Tensor:
        """Check a vector or block against the contract, and multiply it."""
        if X.is_complex():
            return torch.complex(self._apply(X.real, adjoint), self._apply(X.imag, adjoint))
        self._check_operand(X, adjoint)
        block = X[:, None] if X.ndim == 1 else X
        Y = self._rmatmul(block) if adjoint else self._matmul(block)
        result_rows = self.shape_here[1 if adjoint else 0]
        if Y.shape != (result_rows, block.shape[1]) or Y.dtype != self.dtype:
            raise ShapeError(
                f"{type(self).__name__}{' (adjoint)' if adjoint else ''} of shape {self.shape} and "
                f"dtype {self.dtype} returned a tensor of shape {tuple(Y.shape)} and dtype "
                f"{Y.dtype} for one of shape {tuple(block.shape)}."
            )
        return Y[:, 0] if X.ndim == 1 else Y

    def _check_operand(self, X: Tensor, adjoint: bool) -> None:
        """Raise ShapeError for a tensor that A, or Aᵀ, does not multiply."""
        rows = self.shape_here[0 if adjoint else 1]
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

    def frozen(self) -> AbstractContextManager[None]:
        """A context within which A stays as it is, so that products may share preparations.

        Sums and multiples pass it on to their parts.
        """
        return nullcontext()

    @property
    def T(self) -> LinearOperator:
        """The adjoint Aᵀ, of shape (n, m)."""
        return self if self.self_adjoint else AdjointOperator(self)

    def __add__(self, other: Any) -> LinearOperator:
        if isinstance(other, Real) and other == 0:  # where sum() starts
            return self
        return SumOperator(self, self._summand(other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> LinearOperator:
        return self + -self._summand(other)

    def __rsub__(self, other: Any) -> LinearOperator:
        return (-self).__add__(other)

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    def __mul__(self, scale: Any) -> LinearOperator:
        return ScaledOperator(self, self._number(scale))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> LinearOperator:
        if self._number(divisor) == 0:
            raise SkerchError(f"{self!r} / 0 is no operator; divide by another number.")
        return self * (1 / self._number(divisor))

    def __rtruediv__(self, other: Any) -> LinearOperator:
        raise SkerchError(
            f"{self!r} has no inverse; solve A x = b by SciPy's solvers on skerch.to_scipy(A)."
        )

    def __pow__(self, exponent: Any) -> LinearOperator:
        raise SkerchError(f"A power of {self!r} is a product; write A @ A for A².")

    def _summand(self, other: Any) -> LinearOperator:
        if isinstance(other, Number):
            raise SkerchError(
                f"{self!r} ± {other!r}: a number is no operator; for a damping term c I, add "
                f"skerch.linops.DiagonalOperator(torch.full((n,), c, dtype={self.dtype}))."
            )
        if isinstance(getattr(other, "dtype", None), torch.dtype):
            return LinearOperator._as_summand(other)
        return LinearOperator._as_summand(other, dtype=self.dtype, device=self.device)

    def _number(self, scale: Any) -> float:
        is_scalar = isinstance(scale, Tensor | np.ndarray) and scale.ndim == 0
        value = scale.tolist() if is_scalar else scale
        if not isinstance(value, Real):
            raise SkerchError(
                f"{self!r} is multiplied and divided by real numbers only, not by "
                f"{type(scale).__name__}; write A @ B for a product, and take the real and "
                "imaginary parts of a complex multiple apart."
            )
        return float(value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


def _transposed(X: Tensor) -> Tensor:
    """Xᵀ for X of any number of dimensions; a vector stays as it is."""
    return X.permute(tuple(range(X.ndim))[::-1])


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


def _require_same_space(left: LinearOperator, right: LinearOperator, sign: str) -> None:
    if left.dtype != right.dtype or left.device != right.device:
        raise ShapeError(
            f"Operators of shapes {left.shape} {sign} {right.shape} have dtypes {left.dtype} and "
            f"{right.dtype} on devices {left.device} and {right.device}; they must agree."
        )
