"""Batches as trees: tensors in tuples, lists, mappings and dataclasses, also of types of their own.

Examples lie along dimension 0 of the tensors, or are the entries of a list within the batch. A copy
of a batch has the batch's types, so that a loss finds what it was written for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import PackedSequence

from skerch.errors import ShapeError, SkerchError


def count_examples(batch: Any) -> int:
    """The number of examples, in which all tensors of the batch must agree.

    It is the size of dimension 0; of a packed sequence, the number of its sequences. A list or
    tuple within the batch has tensors like that, or an entry for each example: what the rest of the
    batch agrees with. Tensors of shape () belong to all examples.

    Raises ShapeError where there is not one such number.
    """
    return _agreed(batch, "give a batch_weight that counts them.")


def split_batch(batch: Any, size: int) -> list[Any]:
    """The batch as consecutive batches of `size` examples, the last one with what is left.

    Tensors are sliced along dimension 0, as views, and lists that have an entry for each example;
    scalars and what is not a tensor are repeated.

    Raises ShapeError for a size below 1, where the examples cannot be counted, and for packed
    sequences.
    """
    if size < 1:
        raise ShapeError(f"A batch cannot be split into batches of {size}; the least size is 1.")
    total = _agreed(batch, "have all of them there to split it.")
    if size >= total:
        return [batch]
    return [_part(batch, slice(start, start + size), total) for start in range(0, total, size)]


def check_microbatches(model: Module) -> None:
    """Refuse a network whose layers look at all examples of a batch together, by their names."""
    layers = [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]
    if layers:
        raise SkerchError(
            f"Microbatches have other statistics than their batch, and {', '.join(layers[:5])} "
            "normalises by them, so the loss would be another. Put the model in eval mode, leave "
            "microbatch_size out, or set microbatch_unsafe=True if that loss is meant."
        )


def join_batches(a: Any, b: Any) -> Any:
    """Two batches of one structure as one: their tensors joined along dimension 0.

    Scalars, and what is not a tensor, are those of the first. Raises whatever tensors that do not
    fit, or another structure, lead to.
    """
    others = iter(list(tensors_in(b)))

    def join(tensor: Tensor) -> Tensor:
        other = next(others)
        return torch.cat([tensor, other]) if tensor.ndim else tensor

    return _map(join, a)


def with_tensors(batch: Any, tensors: Iterable[Tensor]) -> Any:
    """The batch with other tensors in the place of its own, in order."""
    others = iter(tensors)
    return _map(lambda _: next(others), batch)


def tensor_shapes(batch: Any) -> list[torch.Size]:
    """The shapes of the batch's tensors, in order."""
    return [tensor.shape for tensor in tensors_in(batch)]


def to_device(batch: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """The batch with its tensors on a device, the floating ones in `dtype`; copied if need be.

    An object of another kind that has a method `to` moves itself.

    Raises SkerchError for a batch of a type that cannot be copied.
    """

    def move(leaf: Any) -> Any:
        if not _moves(leaf):
            return leaf
        moved = copy(leaf)  # as some move in place, and some of them return nothing
        result = moved.to(device)
        return moved if result is None else result

    return _map(lambda t: t.to(device, dtype if t.is_floating_point() else None), batch, move)


def has_images(batch: Any) -> bool:
    """Whether a tensor of the batch has the dimensions of images, (n, c, h, w)."""
    return any(tensor.ndim == 4 for tensor in tensors_in(batch))


def channels_last(batch: Any) -> Any:
    """The batch with its images in that memory format; copied if need be."""
    return _map(lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t, batch)


def _moves(leaf: Any) -> bool:
    """Whether it is no tensor, but moves itself to a device, as graphs do."""
    return not isinstance(leaf, Tensor) and callable(getattr(leaf, "to", None))


def _children(batch: Any) -> dict[Any, Any] | None:
    """What a tree holds, by key, position or field; None for a leaf."""
    if isinstance(batch, PackedSequence):  # whose batch_sizes stay on the CPU
        held = {
            name: getattr(batch, name) for name in ("data", "sorted_indices", "unsorted_indices")
        }
        return {name: tensor for name, tensor in held.items() if tensor is not None}
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, tuple | list):
        return dict(enumerate(batch))
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return None


def _with(batch: Any, children: dict[Any, Any]) -> Any:
    """A tree of the same type that holds these in place of its children."""
    try:
        made = _copy(batch, children)
        attributes, held = getattr(batch, "__dict__", {}), _children(batch) or {}
        if len(held) == len(children):  # some have their entries as attributes, too
            new = dict(zip(map(id, held.values()), children.values(), strict=True))
            for name in [name for name, value in attributes.items() if id(value) in new]:
                vars(made)[name] = new[id(attributes[name])]
        return made
    except Exception as error:  # the type is the user's
        raise SkerchError(
            f"A batch of type {type(batch).__name__} cannot be copied ({error}); give tensors in "
            "tuples, lists, dicts or dataclasses."
        ) from error


def _copy(batch: Any, children: dict[Any, Any]) -> Any:
    if isinstance(batch, PackedSequence):
        return batch._replace(**children)
    if isinstance(batch, tuple):
        try:  # whatever its own __new__ takes
            made: Any = tuple.__new__(type(batch), children.values())
        except TypeError:  # torch.Size, and others that are not written in Python
            return type(batch)(children.values())
        if hasattr(batch, "__dict__"):
            vars(made).update(vars(batch))
        return made
    if isinstance(batch, Mapping) and not isinstance(batch, MutableMapping):
        return type(batch)(children)  # type: ignore[call-arg]
    made = copy(batch)
    if isinstance(batch, list):
        made[:] = children.values()
    elif isinstance(batch, Mapping):
        for key, child in children.items():
            made[key] = child
    else:
        for name, child in children.items():
            object.__setattr__(made, name, child)  # also where the dataclass is frozen
    return made


def _map(
    function: Callable[[Tensor], Tensor],
    batch: Any,
    other: Callable[[Any], Any] = lambda leaf: leaf,
) -> Any:
    """The same tree with `function` applied to its tensors, and `other` to its other leaves."""
    if isinstance(batch, Tensor):
        return function(batch)
    children = _children(batch)
    if children is None:
        return other(batch)
    return _with(batch, {key: _map(function, child, other) for key, child in children.items()})


def _leaves(batch: Any) -> Iterator[Any]:
    """The leaves of the tree, in order."""
    children = _children(batch)
    if children is None:
        yield batch
    else:
        for child in children.values():
            yield from _leaves(child)


def tensors_in(batch: Any) -> list[Tensor]:
    """The tensors of the tree, in order."""
    return [leaf for leaf in _leaves(batch) if isinstance(leaf, Tensor)]


def _agreed(batch: Any, way_out: str) -> int:
    """The number of examples; raises ShapeError, with the way out, where it is not clear."""
    sizes = None if any(map(_moves, _leaves(batch))) else _of_fields(batch)
    if sizes is not None and len(sizes) == 1:
        return sizes.pop()
    shapes = dict.fromkeys(str(tuple(tensor.shape)) for tensor in tensors_in(batch))
    raise ShapeError(
        f"The examples of a batch of type {type(batch).__name__} cannot be counted along dimension "
        f"0 of its tensors ({'it has none' if not shapes else ', '.join([*shapes][:4])}); {way_out}"
    )


def _of_fields(batch: Any) -> set[int] | None:
    """The numbers of examples that a tree can be of; None where nothing says so.

    What it holds are its fields, which must be of the same number.
    """
    if isinstance(batch, Tensor):
        return {batch.size(0)} if batch.ndim else None
    if isinstance(batch, PackedSequence):
        return {int(batch.batch_sizes[0])}
    found = [_sizes(child) for child in (_children(batch) or {}).values()]
    known = [sizes for sizes in found if sizes is not None]
    return set.intersection(*known) if known else None


def _sizes(batch: Any) -> set[int] | None:
    """Likewise, within a batch: a list holds its fields, or an entry for each example."""
    sizes = _of_fields(batch)
    if _is_list(batch) and tensors_in(batch):
        return {len(batch)} | (sizes or set())
    return sizes


def _is_list(batch: Any) -> bool:
    """Whether a tree may have an entry for each example."""
    return isinstance(batch, list | tuple) and not hasattr(batch, "_fields")


def _part(batch: Any, window: slice, total: int) -> Any:
    """The examples of a window, of a tree that is of `total` ones."""
    if isinstance(batch, Tensor):
        return batch[window] if batch.ndim else batch
    if isinstance(batch, PackedSequence):
        raise ShapeError("A packed sequence cannot be split; give batches of the size you want.")
    children = _children(batch)
    if children is None:
        return batch
    return _with(batch, {key: _entries(child, window, total) for key, child in children.items()})


def _entries(batch: Any, window: slice, total: int) -> Any:
    """Likewise, within a batch."""
    if not (_is_list(batch) and len(batch) == total):
        return _part(batch, window, total)
    if total in (_of_fields(batch) or ()):
        raise ShapeError(
            f"A list of {total} tensors of {total} entries within a batch holds fields or examples;"
            " it can be split if it is a dict or a stacked tensor."
        )
    return _with(batch, dict(enumerate(batch[window])))
