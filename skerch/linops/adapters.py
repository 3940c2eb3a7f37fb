"""Adapters: operators of other libraries become ours, and ours SciPy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skerch.errors import ShapeError, SkerchError
from skerch.linops.arrays import as_tensor, is_array
from skerch.linops.base import LinearOperator
from skerch.linops.structured import DenseOperator, FunctionOperator, Matmul


class SciPyOperator(LinearOperator):
    """A SciPy sparse array or `scipy.sparse.linalg.LinearOperator`; products pass through NumPy."""

    def __init__(
        self,
        operator: Any,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        *,
        self_adjoint: bool = False,
    ):
        from scipy.sparse.linalg import aslinearoperator as as_scipy_operator

        self.operator = as_scipy_operator(operator)
        own_dtype = as_tensor(np.empty(0, self.operator.dtype)).dtype
        super().__init__(self.operator.shape, dtype or own_dtype, device)
        self.self_adjoint = self_adjoint

    def _matmul(self, X: Tensor) -> Tensor:
        return self._call(self.operator.matmat, X)

    def _rmatmul(self, X: Tensor) -> Tensor:
        if self.self_adjoint:
            return self._matmul(X)
        try:
            return self._call(self.operator.rmatmat, X)
        except (NotImplementedError, TypeError) as error:  # SciPy's own words for a missing rmatvec
            raise SkerchError(
                f"{self!r} has no adjoint product in SciPy ({error}); give its LinearOperator an "
                "rmatvec."
            ) from error

    def _call(self, multiply: Callable[[Any], Any], X: Tensor) -> Tensor:
        return as_tensor(multiply(_shown(X)), self.dtype, self.device)


class CurvlinopsOperator(LinearOperator):
    """A curvlinops operator, or any other with torch's `dtype`, `device`, `@` and `adjoint()`."""

    def __init__(self, operator: Any, *, self_adjoint: bool | None = None):
        super().__init__(operator.shape, operator.dtype, operator.device)
        declared = bool(getattr(operator, "SELF_ADJOINT", False))
        self.operator = operator
        self.self_adjoint = declared if self_adjoint is None else self_adjoint

    def _matmul(self, X: Tensor) -> Tensor:
        Y: Tensor = self.operator @ X
        return Y

    def _rmatmul(self, X: Tensor) -> Tensor:
        Y: Tensor = (self.operator if self.self_adjoint else self.operator.adjoint()) @ X
        return Y


def aslinearoperator(
    obj: Any,
    *,
    shape: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    self_adjoint: bool | None = None,
    adjoint: Matmul | None = None,
    vectorwise: bool = False,
) -> LinearOperator:
    """`obj` as a `LinearOperator`.

    obj: one of
        a `LinearOperator`, returned as it is;
        a tensor, NumPy array or list of shape (m, n), converted to `dtype` and `device`;
        a SciPy sparse array or `scipy.sparse.linalg.LinearOperator`, its results converted to them;
        a curvlinops operator;
        a callable X ↦ A X, which needs `shape`; float32 on the CPU unless told.
    self_adjoint: declares A = Aᵀ, which is never guessed from numbers. Operators that declare it
        themselves need not be told.
    adjoint: for a callable, X ↦ Aᵀ X.
    vectorwise: whether the callable takes vectors (n,) only, rather than blocks (n, b).

    Raises `ShapeError` where `shape`, `dtype` or `device` is given and is not the operator's, and
    `SkerchError` for complex or integer dtypes, for a self-adjointness that contradicts the
    operator's own or its shape, and for an `obj` that is none of the above.
    """
    declared = bool(self_adjoint)
    operator: LinearOperator
    if isinstance(obj, LinearOperator):
        operator = obj
    elif is_array(obj):
        operator = DenseOperator(as_tensor(obj, dtype, device), self_adjoint=declared)
    elif isinstance(getattr(obj, "dtype", None), torch.dtype) and hasattr(obj, "__matmul__"):
        operator = CurvlinopsOperator(obj, self_adjoint=self_adjoint)
    elif _is_scipy(obj):
        operator = SciPyOperator(obj, dtype, device or "cpu", self_adjoint=declared)
    elif callable(obj):
        if shape is None:
            raise SkerchError(
                "A callable does not say its shape; pass shape=(m, n) to skerch.aslinearoperator."
            )
        operator = FunctionOperator(
            obj,
            shape,
            dtype or torch.float32,
            device or "cpu",
            adjoint=adjoint,
            vectorwise=vectorwise,
            self_adjoint=declared,
        )
    else:
        raise SkerchError(
            f"{type(obj).__name__} is no linear operator; pass a tensor, an array, a SciPy or "
            "curvlinops operator, or a callable with its shape."
        )
    _check_declarations(operator, shape, dtype, device, self_adjoint)
    return operator


def as_operand(
    obj: Any, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> LinearOperator:
    """`obj` as a `LinearOperator`, self-adjoint if it is a symmetric matrix.

    A tensor, an array or a SciPy sparse matrix A counts as symmetric if ‖(A - Aᵀ) g‖ ≤ √eps ‖A g‖
    for a Gaussian vector g. Any other operator has to declare it.
    """
    import scipy.sparse

    operator = aslinearoperator(obj, dtype=dtype, device=device)
    if is_array(obj) or scipy.sparse.issparse(obj):
        operator.self_adjoint = _is_symmetric(operator)
    return operator


def _is_symmetric(operator: LinearOperator) -> bool:
    m, n = operator.shape
    if m != n:
        return False
    g = torch.from_numpy(np.random.default_rng(0).standard_normal(n))
    g = g.to(operator.device, operator.dtype)
    product, difference = (operator @ g).double(), (operator @ g - operator.T @ g).double()
    tolerance = torch.finfo(operator.dtype).eps ** 0.5 * torch.linalg.norm(product)
    return not bool(torch.linalg.norm(difference) > tolerance)  # nor with a NaN, which comes later


def _is_scipy(obj: Any) -> bool:
    import scipy.sparse.linalg

    return scipy.sparse.issparse(obj) or isinstance(obj, scipy.sparse.linalg.LinearOperator)


def _check_declarations(
    operator: LinearOperator,
    shape: tuple[int, int] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    self_adjoint: bool | None,
) -> None:
    """Refuse an operator that is not what the caller said of it."""
    if shape is not None and tuple(shape) != operator.shape:
        raise ShapeError(f"{operator!r} does not have the declared shape {tuple(shape)}.")
    if dtype is not None and dtype != operator.dtype:
        raise ShapeError(f"{operator!r} does not have the declared dtype {dtype}.")
    if device is not None and torch.device(device).type != operator.device.type:
        raise ShapeError(f"{operator!r} lives on {operator.device}, not on {device}.")
    if self_adjoint is not None and self_adjoint != operator.self_adjoint:
        raise SkerchError(
            f"{operator!r} says self_adjoint={operator.self_adjoint}, the caller {self_adjoint}."
        )
    if operator.self_adjoint and operator.shape[0] != operator.shape[1]:
        raise ShapeError(f"{operator!r} is not square: it cannot be self-adjoint.")


def to_scipy(operator: Any) -> Any:
    """The same operator as a `scipy.sparse.linalg.LinearOperator`, for NumPy vectors and blocks.

    It has matvec, matmat, rmatvec and rmatmat; half precisions are shown as float32. Operands are
    converted to the operator's dtype, the real and the imaginary part of complex ones apart.
    """
    from scipy.sparse.linalg import LinearOperator as SciPyLinearOperator

    operator = aslinearoperator(operator)

    def product(factor: LinearOperator) -> Callable[[Any], Any]:
        def multiply(X: Any) -> Any:
            block = as_tensor(X)
            if block.is_complex():
                return multiply(block.real) + 1j * multiply(block.imag)
            return _shown(factor @ block.to(factor.device, factor.dtype))

        return multiply

    return SciPyLinearOperator(
        shape=operator.shape,
        matvec=product(operator),
        matmat=product(operator),
        rmatvec=product(operator.T),
        rmatmat=product(operator.T),
        dtype=_shown(torch.empty(0, dtype=operator.dtype, device="cpu")).dtype,
    )


def _shown(X: Tensor) -> Any:
    """A tensor as a NumPy array, in at least single precision."""
    return X.to(torch.promote_types(X.dtype, torch.float32)).numpy(force=True)


LinearOperator._as_factor = staticmethod(aslinearoperator)
LinearOperator._as_summand = staticmethod(as_operand)
