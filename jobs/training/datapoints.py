"""Samples, batches and subsets of a problem's datasets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from operator import index
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset, default_collate

from skerch.jobs.config.schema import Hessian, Training
from skerch.jobs.errors import ConfigError
from skerch.jobs.problems import user_code
from skerch.randomness import stream

LABELS = (
    "label",
    "labels",
    "target",
    "y",
)  # keys of a class, in samples that are mappings
MOST_READ = 100_000  # samples whose classes are looked for one by one


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
    many = getattr(dataset, "__getitems__", None)
    for chosen in indices:  # a DataLoader would draw a seed, on torch's default device
        numbers = chosen.tolist()
        with user_code("The problem's samples do not make a batch"):
            batch = default_collate(many(numbers) if many else [dataset[i] for i in numbers])
        yield tuple(batch) if isinstance(batch, list) else batch


def shuffled(dataset: Any, training: Training, start: int, stop: int) -> Iterator[Tensor]:
    """The sample indices of the training's batches of steps start + 1 … stop: shuffled epochs.

    What is left of an epoch beyond its last full batch is dropped.
    """
    size, batch = count(dataset, "train"), training.batch_size
    per_epoch = size // batch
    if per_epoch == 0:
        raise ConfigError(
            f"training.batch_size is {batch}, but the train split has only {size} samples."
        )
    for epoch in range(start // per_epoch, -(-stop // per_epoch)):
        permutation = stream(training.seed, "data", epoch).permutation(size)
        whole = torch.from_numpy(permutation)[: per_epoch * batch].view(per_epoch, batch)
        begin = epoch * per_epoch
        yield from whole[max(start - begin, 0) : stop - begin]


def hessian_batch(dataset: Any, split: str, hessian: Hessian) -> Any:
    """One batch of the `hessian.datapoints` samples that the Hessian is of.

    Subset "first" takes the first samples; "balanced" the lowest indices of each class, equally
    many of each, in ascending order.

    Raises:
        ConfigError: the split, or one of its classes, is too small; samples are of a type of the
            problem's own.
    """
    size = count(dataset, split)
    wanted = hessian.datapoints
    if hessian.subset == "first":
        if wanted > size:
            raise ConfigError(
                f"hessian.datapoints is {wanted}, but the {split} split has only {size} samples."
            )
        index = torch.arange(wanted, device="cpu")
    else:
        index = _balanced(_labels(dataset, split), split, wanted)
    batch = next(batches(dataset, [index]))
    _check_types(batch, split)
    return batch


def _check_types(batch: Any, split: str) -> None:
    """Refuse types of the problem's own: no later task could read them from a file."""
    if not isinstance(batch, Mapping | list | tuple):
        return
    if type(batch) not in (dict, OrderedDict, list, tuple):
        raise ConfigError(
            f"The problem's data({split!r}) gives samples of type {type(batch).__name__}, which "
            "cannot be read from a file by later tasks; give tuples or dicts of tensors."
        )
    for part in batch.values() if isinstance(batch, Mapping) else batch:
        _check_types(part, split)


def _labels(dataset: Any, split: str) -> Tensor:
    """The class of each sample (n,): stored in the dataset, or else read sample by sample."""
    refusal = f"hessian.subset is balanced, but the problem's data({split!r}) has no `targets` with"
    way_out = "give it such `targets`, or set hessian.subset=first."
    with user_code(f"problem: the classes of data({split!r}) cannot be read"):
        labels = _stored_labels(dataset)
        if labels is not None:
            return labels
        if len(dataset) > MOST_READ:
            raise ConfigError(
                f"{refusal} an integer for each sample, and {len(dataset):,} samples are too many "
                f"to read them one by one (at most {MOST_READ:,}); {way_out}"
            )
        found = []
        for position in range(len(dataset)):
            found.append(_label_of(dataset[position]))
            if found[-1] is None:
                raise ConfigError(
                    f"{refusal} an integer for each sample, and sample {position} has none as its "
                    f"second part or under {', '.join(LABELS)}; {way_out}"
                )
    return torch.tensor(found, device="cpu")


def _stored_labels(dataset: Any) -> Tensor | None:
    """The classes that a dataset holds beside its samples, one integer for each."""
    candidates = [getattr(dataset, name, None) for name in ("targets", "labels")]
    if isinstance(dataset, TensorDataset):
        candidates += reversed(dataset.tensors[1:])
    elif isinstance(dataset, Subset):
        whole = _stored_labels(dataset.dataset)
        candidates.append(
            None if whole is None else whole[torch.as_tensor(dataset.indices, device="cpu")]
        )
    elif isinstance(dataset, ConcatDataset):
        parts = [part for part in map(_stored_labels, dataset.datasets) if part is not None]
        candidates.append(torch.cat(parts) if len(parts) == len(dataset.datasets) else None)
    for candidate in candidates:
        try:
            labels = torch.as_tensor(candidate, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            continue
        whole_numbers = not (labels.is_floating_point() or labels.is_complex())
        if whole_numbers and labels.shape == (len(dataset),):
            return labels.long()
    return None


def _label_of(sample: Any) -> int | None:
    """The integer class of a sample: its second part, or under one of the usual keys."""
    label: Any
    if isinstance(sample, Mapping):
        label = next((sample[key] for key in LABELS if key in sample), None)
    else:
        label = sample[1] if isinstance(sample, tuple | list) and len(sample) > 1 else None
    try:
        return index(label)
    except TypeError:
        return None


def _balanced(labels: Tensor, split: str, wanted: int) -> Tensor:
    """The lowest indices of each class, `wanted` in all, ascending."""
    classes, sizes = torch.unique(labels, return_counts=True)
    per_class, remainder = divmod(wanted, len(classes))
    smallest = int(sizes.min())
    if remainder or per_class > smallest:
        raise ConfigError(
            f"hessian.datapoints is {wanted}; a balanced subset of the {split} split is a multiple "
            f"of its {len(classes)} classes, at most {smallest * len(classes)} (the rarest class "
            f"has {smallest} samples). Take such a number, or set hessian.subset=first."
        )
    begins = sizes.cumsum(0) - sizes
    chosen = (begins[:, None] + torch.arange(per_class, device="cpu")).flatten()
    return labels.argsort(stable=True)[chosen].sort().values
