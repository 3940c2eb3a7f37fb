"""Whether the gradients of layers are what their record says."""

from __future__ import annotations

import torch
from torch import Tensor

from skerch.curvature.batching import to_device
from skerch.curvature.empirical_fisher import EmpiricalFisherOperator
from skerch.curvature.fisher import FisherOperator
from skerch.curvature.losses import differentiating
from skerch.curvature.state import unchanged
from skerch.errors import ShapeError, SkerchError
from skerch.kronecker.layers import Layer, Layers, find_layers
from skerch.kronecker.recorder import Record, recording
from skerch.rounding import rounding

ELSEWHERE = "its gradient is not that of its module's calls, example by example"
APART = "its examples do not lie along dimension 0"


def layers_of(
    curvature: FisherOperator | EmpiricalFisherOperator, *, include_bias: bool = True
) -> Layers:
    """The layers of a curvature's parameters, checked.

    Raises SkerchError where there is none.
    """
    found = find_layers(curvature.model, curvature.params, include_bias=include_bias)
    found = checked(curvature, found)
    if not found.covered:
        why = "; ".join(f"{name}: {reason}" for name, reason in found.uncovered.items())
        raise SkerchError(f"No parameter is in a layer with Kronecker factors ({why}).")
    return found


def checked(curvature: FisherOperator | EmpiricalFisherOperator, layers: Layers) -> Layers:
    """Layers without those whose gradients are not Σ_t g aᵀ of their modules' calls.

    It tells by the first batch of several examples. Such layers are of parameters that are used
    otherwise than by their module, as those of fused attention are, or of modules that mix
    examples or have them elsewhere than along dimension 0.
    """
    with unchanged(curvature.model, curvature.device), differentiating():
        for _, batch in curvature.data_batches():
            with recording(curvature.model, layers.covered) as record:
                z = curvature.output(to_device(batch, curvature.device), "preserve")
            if len(z) > 1:
                break
        record.n = len(z)
        return layers.without(_faults(curvature, layers.covered, record, z))


def _faults(
    curvature: FisherOperator | EmpiricalFisherOperator,
    layers: list[Layer],
    record: Record,
    z: Tensor,
) -> dict[str, str]:
    """The layers, by name, whose gradients by rows and slopes are not autograd's.

    For random r and c, the gradient of Σ_i c_i ⟨r_i, z_i⟩ must be Σ_i c_i G_i, where G_i is example
    i's part of the gradient of Σ_i ⟨r_i, z_i⟩.
    """
    reasons = {}
    for layer in record.layers:
        try:
            record.rows(layer)
        except ShapeError:
            reasons[layer.name] = APART
    record.calls = [call for call in record.calls if call.layer.name not in reasons]
    generator = torch.Generator().manual_seed(0)
    r = torch.randn(z.shape, generator=generator, device="cpu").to(z)
    c = torch.randn(len(z), generator=generator, device="cpu").to(z)
    gradients = torch.autograd.grad(
        z,
        list(curvature.params.values()),
        r * c.view(-1, *[1] * (z.ndim - 1)),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    by_name = dict(zip(curvature.params, gradients, strict=True))
    found, allowed = {}, max(rounding(curvature.precision), rounding(z.dtype))
    for layer, g in record.slopes(z, r[None]):
        found[layer.name] = _gradient(layer, record.rows(layer), g[0], c)
        allowed = max(allowed, rounding(g.dtype))  # also under autocast
    for layer in layers:
        exact = layer.matrix(by_name)
        difference = exact - found.get(layer.name, torch.zeros_like(exact))
        if not difference.norm() <= allowed * exact.norm():
            reasons.setdefault(layer.name, ELSEWHERE)
    return reasons


def _gradient(layer: Layer, a: Tensor, g: Tensor, c: Tensor) -> Tensor:
    """Σ_i c_i Σ_t g aᵀ (groups, outputs, inputs) of rows a, slopes g and factors c (n,)."""
    g = g * c.view(-1, 1, 1, 1)
    if layer.indices:
        G = g.new_zeros(layer.shape[2], layer.shape[1])
        return G.index_add_(0, a.flatten(), g.flatten(0, 2)).mT[None]
    return torch.einsum("ntgo,ntgi->goi", g, a.to(g.dtype))
