"""Linear operators: the contract, matrices and factors, and adapters to other libraries."""

from skerch.linops.adapters import aslinearoperator, to_scipy
from skerch.linops.base import LinearOperator
from skerch.linops.structured import DiagonalOperator, LowRankOperator

__all__ = [
    "DiagonalOperator",
    "LinearOperator",
    "LowRankOperator",
    "aslinearoperator",
    "to_scipy",
]
