"""Hessian products by curvlinops, one vector at a time and all at once."""

from __future__ import annotations

from curvlinops import HessianLinearOperator
from products import seconds, serve, vectors
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

operators: list[HessianLinearOperator] = []


def load(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Make the operator that is measured from now on."""
    parameters = list(network.parameters())
    operators[:] = [
        HessianLinearOperator(
            network, nn.CrossEntropyLoss(), parameters, [batch], check_deterministic=False
        )
    ]


def products(count: int, matrix: bool) -> dict[str, float]:
    """The seconds that `count` products take, and their Frobenius norm."""
    (H,) = operators
    V = vectors(count, H.shape[1]).T
    found: list[Tensor] = []

    def work() -> None:
        found[:] = [H @ V] if matrix else [H @ V[:, i] for i in range(count)]

    with sdpa_kernel(SDPBackend.MATH):
        taken = seconds(work)
    return {"seconds": taken, "norm": sum(float(Y.norm()) ** 2 for Y in found) ** 0.5}


if __name__ == "__main__":
    serve(load, products=products)
