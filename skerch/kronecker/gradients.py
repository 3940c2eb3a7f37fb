"""Gradients for Kronecker factors: from tensors by name, and of low rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from skerch.errors import ShapeError
from skerch.kronecker.operator import KroneckerOperator

SETTING = "kronecker.include_bias"


def flat_gradients(tensors: Mapping[str, Tensor], op: KroneckerOperator) -> Tensor:
    """(N, q) of gradients by parameter's name, each of the parameter's shape or of (q, *shape).

    Parameters that are in no layer may be left out, and are 0.

    Raises ShapeError where names or shapes are not those of the factors.
    """
    for block in op.blocks:
        _check_bias(tensors, op, block.layer.weight, block.layer.bias, block.layer.name)
    known = ", ".join(op.shapes)
    if strange := [name for name in tensors if name not in op.shapes]:
        raise ShapeError(f"There is no parameter {strange[0]}; the factors are of {known}.")
    counts = set()
    for name, tensor in tensors.items():
        shape = op.shapes[name]
        if tuple(tensor.shape[tensor.ndim - len(shape) :]) != shape or (
            tensor.ndim - len(shape) not in (0, 1)
        ):
            raise ShapeError(
                f"The gradient of {name} is of shape {tuple(tensor.shape)}; it must be {shape}, or "
                f"(q, {', '.join(map(str, shape))}) for q gradients."
            )
        counts.add(len(tensor) if tensor.ndim > len(shape) else 1)
    if missing := [n for n in op.shapes if n not in tensors and n not in op.uncovered]:
        raise ShapeError(f"The gradient of {missing[0]} is missing; the factors are of {known}.")
    if len(counts) > 1:
        raise ShapeError(f"The gradients are {sorted(counts)} in number; give one number for all.")
    (q,) = counts
    rows = torch.zeros(q, op.size, dtype=op.dtype, device=op.device)
    for name, tensor in tensors.items():
        rows[:, op.columns[name]] = tensor.to(rows).reshape(q, -1)
    return rows.T


def _check_bias(
    tensors: Mapping[str, Tensor],
    op: KroneckerOperator,
    weight: str | None,
    bias: str | None,
    layer: str,
) -> None:
    """Refuse gradients with a bias that the factors leave out, or without one that they have."""
    if weight is None or weight not in tensors:
        return
    left_out = next((n for n in op.uncovered if n == f"{layer}.bias".lstrip(".")), None)
    outputs, inputs = tensors[weight].shape[-2:] if tensors[weight].ndim > 1 else (0, 0)
    if bias is not None and bias not in tensors:
        raise ShapeError(
            f"Layer {layer}: gradients of shape ({outputs}, {inputs}) have no bias, and the "
            f"factors are of ({outputs}, {inputs + 1}), with one; give {bias}, or make factors "
            f"with {SETTING}=false."
        )
    if left_out is not None and left_out in tensors:
        raise ShapeError(
            f"Layer {layer}: gradients of shape ({outputs}, {inputs + 1}) have a bias, and the "
            f"factors are of ({outputs}, {inputs}), without; leave {left_out} out, or make factors "
            f"with {SETTING}=true."
        )


def low_rank(gradients: Tensor, op: KroneckerOperator, rank: int) -> Tensor:
    """The best approximation of rank `rank` of each layer's matrix, of gradients (N, q).

    Kept as its singular vectors, a gradient takes rank (outputs + inputs) numbers a layer.
    """
    rows = gradients.T.clone()
    for block in op.blocks:
        layer = block.layer
        parts = {
            name: rows[:, op.columns[name]].reshape(-1, *shape)
            for name, shape in layer.shapes.items()
        }
        U, s, Vh = torch.linalg.svd(layer.matrix(parts).double(), full_matrices=False)
        best = (U[..., :rank] * s[..., None, :rank]) @ Vh[..., :rank, :]
        for name, part in layer.tensors(best.to(rows)).items():
            rows[:, op.columns[name]] = part.reshape(len(rows), -1)
    return rows.T
