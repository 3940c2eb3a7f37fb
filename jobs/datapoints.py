"""Samples, batches and subsets of a problem's datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from skerch.jobs.schema import ConfigError, Hessian


def count(dataset: Any, split: str) -> int:
    """The number of samples; datasets that only iterate are refused."""
    try:
        return len(dataset)
    except TypeError as error:
        raise ConfigError(
            f"The problem's data({split!r}) has no length ({error}); give a dataset with __len__ "
            "and __getitem__."
        ) from error


def batches(dataset: Any, indices: Iterable[Tensor]) -> Iterator[Any]:
    """The batch of each tensor of sample indices; of tensors in memory, without collating."""
    if type(dataset).__getitem__ is TensorDataset.__getitem__:
        yield from (tuple(tensor[index] for tensor in dataset.tensors) for index in indices)
        return
    loader = DataLoader(
        dataset,
        batch_sampler=(index.tolist() for index in indices),
        generator=torch.Generator(),  # else making the iterator would advance the global one
    )
    for batch in loader:
        yield tuple(batch) if isinstance(batch, list) else batch


def hessian_batch(dataset: Any, split: str, hessian: Hessian) -> Any:
    """One batch of the `hessian.datapoints` samples that the Hessian is of.

    Subset "first" takes the first samples; "balanced" the lowest indices of each class, equally
    many of each, in ascending order.

    Raises:
        ConfigError: the split, or one of its classes, is too small.
    """
    size = count(dataset, split)
    wanted = hessian.datapoints
    if hessian.subset == "first":
        if wanted > size:
            raise ConfigError(
                f"hessian.datapoints is {wanted}, but the {split} split has only {size} samples."
            )
        index = torch.arange(wanted)
    else:
        index = _balanced(_labels(dataset, split), split, wanted)
    return next(batches(dataset, [index]))


def _labels(dataset: Any, split: str) -> Tensor:
    if not hasattr(dataset, "targets"):
        raise ConfigError(
            f"hessian.subset is balanced, but the problem's data({split!r}) has no `targets` with "
            "the class of each sample; add them, or set hessian.subset=first."
        )
    labels = torch.as_tensor(dataset.targets)
    if labels.ndim != 1 or labels.is_floating_point():
        raise ConfigError(
            f"hessian.subset is balanced, but the `targets` of data({split!r}) are not one integer "
            f"a sample (shape {tuple(labels.shape)}, {labels.dtype}); set hessian.subset=first."
        )
    return labels


def _balanced(labels: Tensor, split: str, wanted: int) -> Tensor:
    """The lowest indices of each class, `wanted` in all, ascending."""
    classes, sizes = labels.unique(return_counts=True)
    per_class, remainder = divmod(wanted, len(classes))
    smallest = int(sizes.min())
    if remainder or per_class > smallest:
        raise ConfigError(
            f"hessian.datapoints is {wanted}; a balanced subset of the {split} split is a multiple "
            f"of its {len(classes)} classes, at most {smallest * len(classes)} (the rarest class "
            f"has {smallest} samples). Take such a number, or set hessian.subset=first."
        )
    begins = sizes.cumsum(0) - sizes
    chosen = (begins[:, None] + torch.arange(per_class)).flatten()
    return labels.argsort(stable=True)[chosen].sort().values
