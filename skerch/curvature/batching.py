"""Batches as trees: tensors in tuples, lists and dicts, with the examples along dimension 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from skerch.errors import ShapeError


def count_examples(batch: Any) -> int:
    """The number of examples: the size of dimension 0 of the batch's first tensor.

    Raises ShapeError where no tensor of the batch has a dimension.
    """
    for tensor in _tensors(batch):
        if tensor.ndim:
            return tensor.shape[0]
    raise ShapeError(
        f"A batch of type {type(batch).__name__} has no tensor with a dimension of examples; give "
        "tensors, or tuples, lists or dicts of them, or a batch_weight of your own."
    )


def split_batch(batch: Any, size: int) -> list[Any]:
    """The batch as consecutive batches of `size` examples, the last one with what is left.

    Tensors are sliced along dimension 0, as views; scalars and what is not a tensor are repeated.
    Raises ShapeError for a size below 1, and where tensors disagree on the number of examples.
    """
    if size < 1:
        raise ShapeError(f"A batch cannot be split into batches of {size}; the least size is 1.")
    total = count_examples(batch)
    for tensor in _tensors(batch):
        if tensor.ndim and tensor.shape[0] != total:
            raise ShapeError(
                f"A batch of {total} examples has a tensor of shape {tuple(tensor.shape)}; only "
                f"tensors with {total} entries along dimension 0 can be split."
            )

    def part(start: int) -> Any:
        return _map(lambda t: t[start : start + size] if t.ndim else t, batch)

    return [part(start) for start in range(0, total, size)]


def join_batches(a: Any, b: Any) -> Any:
    """Two batches of one structure as one: their tensors joined along dimension 0.

    Scalars, and what is not a tensor, are those of the first. Raises whatever tensors that do not
    fit, or another structure, lead to.
    """
    others = iter(list(_tensors(b)))

    def join(tensor: Tensor) -> Tensor:
        other = next(others)
        return torch.cat([tensor, other]) if tensor.ndim else tensor

    return _map(join, a)


def tensor_shapes(batch: Any) -> list[torch.Size]:
    """The shapes of the batch's tensors, in order."""
    return [tensor.shape for tensor in _tensors(batch)]


def to_device(batch: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """The batch with its tensors on a device, the floating ones in `dtype`; copied if need be."""
    return _map(lambda t: t.to(device, dtype if t.is_floating_point() else None), batch)


def has_images(batch: Any) -> bool:
    """Whether a tensor of the batch has the dimensions of images, (n, c, h, w)."""
    return any(tensor.ndim == 4 for tensor in _tensors(batch))


def channels_last(batch: Any) -> Any:
    """The batch with its images in that memory format; copied if need be."""
    return _map(lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t, batch)


def _map(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """The same tree with `function` applied to its tensors."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: _map(function, value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [_map(function, part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def _tensors(batch: Any) -> Iterator[Tensor]:
    """The tensors of the tree, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | tuple | list):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)
