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
from skerch.curvature.parameters import params_to_vector, vector_to_params
from skerch.errors import SkerchError

ASYMMETRY = 1e-8  # of ‖H‖: far above rounding in float64, and below it in float32
STEPS = (1e-5, 1e-6, 1e-7)  # of differences, over ‖θ‖: a kink in the way of one spares a shorter
DISAGREEMENT = 1e-3  # of ‖Hv‖: above the error of the best step, far below that of a lost term
ZEROS: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}


def dense_hessian(
    model: nn.Module,
    names: Sequence[str],
    batch: Any,
    loss_fn: LossFn,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The Hessian (N, N) of a batch's loss in the named parameters, all of them in float64.

    Raises SkerchError where the loss or a parameter is not float64, and where H is not finite, not
    symmetric, or not how the gradient changes along a random direction.
    """
    N = sum(model.get_parameter(name).numel() for name in names)
    H = torch.empty(N, N, dtype=torch.float64)
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
        raise _wrong(f"it is not symmetric, ‖H - Hᵀ‖ is {asymmetry / norm:.1e} ‖H‖")
    H = (H + H.T) / 2
    disagreement = _disagreement(H, model, names, batch, loss_fn)
    if disagreement > DISAGREEMENT:
        raise _wrong(f"Hv is off by {disagreement:.1e} from the differences of the gradient")
    return H


def hessian_rows(
    model: nn.Module, names: Sequence[str], batch: Any, loss_fn: LossFn
) -> Iterator[Tensor]:
    """The rows (N,) of the Hessian, as they come: gradients of the entries of the gradient."""
    params = [model.get_parameter(name) for name in names]
    gradient = _gradient(model, names, batch, loss_fn)
    for index in range(len(gradient)):
        if gradient.requires_grad:
            yield _flat(torch.autograd.grad(gradient[index], params, retain_graph=True, **ZEROS))
        else:
            yield torch.zeros_like(gradient)


def _gradient(model: nn.Module, names: Sequence[str], batch: Any, loss_fn: LossFn) -> Tensor:
    """The gradient (N,) with its graph."""
    params = [model.get_parameter(name) for name in names]
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        loss = loss_fn(model, batch)
    for name, value in [("the loss", loss), *zip(names, params, strict=True)]:
        if value.dtype != torch.float64:
            raise SkerchError(
                f"The exact Hessian is of real numbers in float64, and {name} is {value.dtype}; "
                "the loss must keep to the dtype of the parameters and the batch."
            )
    return _flat(torch.autograd.grad(loss, params, create_graph=True, **ZEROS))


def _disagreement(
    H: Tensor, model: nn.Module, names: Sequence[str], batch: Any, loss_fn: LossFn
) -> float:
    """‖Hv - d‖ / ‖d‖ for central differences d of the gradient along a random v, the least of all.

    The model's parameters are what they were when it returns.
    """
    named = {name: model.get_parameter(name) for name in names}
    theta = params_to_vector(named)
    v = torch.randn(len(H), dtype=H.dtype, generator=torch.Generator().manual_seed(0))
    v *= torch.linalg.norm(theta).clamp(min=1.0) / torch.linalg.norm(v)

    def gradient(shift: float) -> Tensor:
        vector_to_params(theta + shift * v, named)
        return _gradient(model, names, batch, loss_fn).detach()

    try:
        center = torch.linalg.norm(gradient(0.0))
        errors = []
        for step in STEPS:
            change = gradient(step) - gradient(-step)
            scale = torch.linalg.norm(change) + 1e-10 * center  # the gradient's own rounding
            errors.append(float(torch.linalg.norm(change - 2 * step * (H @ v)) / scale))
    finally:
        vector_to_params(theta, named)
    return min(errors)


def _wrong(how: str) -> SkerchError:
    return SkerchError(
        f"The exact Hessian is wrong: {how}. The loss computes in less than float64 somewhere, or "
        "the second derivative of a part of it is wrong, as where the backward of a "
        "torch.autograd.Function detaches a tensor."
    )


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
