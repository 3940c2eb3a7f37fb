"""The whole Hessian by plain automatic differentiation: reverse mode twice, row after row.

It is an oracle: without `vmap` and without our strategies it shares nothing with the operator, and
takes every model whose loss can be differentiated twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from skerch.curvature.losses import LossFn
from skerch.errors import SkerchError

ASYMMETRY = 1e-8  # of ‖H‖: far above rounding in float64, and below it in float32
ZEROS: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}


def dense_hessian(
    model: nn.Module,
    names: Sequence[str],
    batch: Any,
    loss_fn: LossFn,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The Hessian (N, N) of a batch's loss in the named parameters, all of them in float64.

    Raises SkerchError where the loss or a parameter is not float64, or H not finite or symmetric.
    """
    N = sum(model.get_parameter(name).numel() for name in names)
    H = torch.empty(N, N, dtype=torch.float64, device="cpu")
    for index, row in enumerate(hessian_rows(model, names, batch, loss_fn)):
        H[index] = row
        progress(index + 1, N)
    norm = float(torch.linalg.norm(H))
    if not math.isfinite(norm):
        raise SkerchError(
            "The exact Hessian is not finite; check the data and the learning rate, or take an "
            "earlier step."
        )
    asymmetry = float(torch.linalg.norm(H - H.T))
    if asymmetry > ASYMMETRY * norm:
        raise SkerchError(
            f"The exact Hessian is not symmetric: ‖H - Hᵀ‖ is {asymmetry / norm:.1e} ‖H‖. The loss "
            "computes in less than float64 somewhere, or the second derivative of a part of it is "
            "wrong, as where the backward of a torch.autograd.Function detaches a tensor."
        )
    return (H + H.T) / 2


def hessian_rows(
    model: nn.Module, names: Sequence[str], batch: Any, loss_fn: LossFn
) -> Iterator[Tensor]:
    """The rows (N,) of the Hessian, as they come: gradients of the entries of the gradient."""
    params = [model.get_parameter(name) for name in names]
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        loss = loss_fn(model, batch)
    for name, value in [("the loss", loss), *zip(names, params, strict=True)]:
        if value.dtype != torch.float64:
            raise SkerchError(
                f"The exact Hessian is of real numbers in float64, and {name} is {value.dtype}; "
                "the loss must keep to the dtype of the parameters and the batch."
            )
    for part in torch.autograd.grad(loss, params, create_graph=True, **ZEROS):
        gradient = part.to_dense().flatten()
        for index in range(len(gradient)):
            if gradient.requires_grad:
                row = torch.autograd.grad(gradient[index], params, retain_graph=True, **ZEROS)
            else:
                row = tuple(torch.zeros_like(p) for p in params)
            yield _flat(row)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.to_dense().flatten() for part in parts])
