"""Linear operators: the contract, its algebra, and adapters from and to other libraries."""

from skerch.linops.adapters import aslinearoperator, to_scipy
from skerch.linops.algebra import (
    AdjointOperator,
    DiagonalOperator,
    LowRankOperator,
    ProductOperator,
    ScaledOperator,
    SumOperator,
)
from skerch.linops.base import LinearOperator

__all__ = [
    "AdjointOperator",
    "DiagonalOperator",
    "LinearOperator",
    "LowRankOperator",
    "ProductOperator",
    "ScaledOperator",
    "SumOperator",
    "aslinearoperator",
    "to_scipy",
]
