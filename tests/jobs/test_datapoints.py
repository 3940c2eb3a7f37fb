"""Which samples the Hessian is of: the first, or equally many of each class."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from skerch.jobs.config.schema import Hessian
from skerch.jobs.errors import ConfigError
from skerch.jobs.training.datapoints import MOST_READ, hessian_batch

CLASSES = [2, 0, 0, 1, 0, 2, 1, 1, 2]
LOWEST_TWO = [0, 1, 2, 3, 5, 6]  # of each class
X, Y = torch.arange(9.0), torch.tensor(CLASSES)


class Samples(Dataset):
    """Nine samples made one by one, with attributes of its own."""

    def __init__(self, sample, **attributes):
        self.sample = sample
        vars(self).update(attributes)

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return self.sample(X[index], CLASSES[index])


def bare(x, label):
    """A sample without its class."""
    return (x,)


def pair(x, label):
    """A sample with its class."""
    return x, label


class Cropped(TensorDataset):
    """Samples without the first and the last, but the classes of all."""

    targets = (1, *CLASSES, 0)


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(X, Y),
        TensorDataset(X, torch.ones(9), Y.to(torch.uint8)),
        TensorDataset(X, Y, torch.ones(9)),
        Samples(bare, targets=CLASSES),
        Samples(bare, targets=np.array(CLASSES, dtype=np.uint8)),
        Samples(bare, targets=list(Y)),
        Samples(bare, labels=np.array(CLASSES)),
        Samples(pair, labels=["cat", "dog", "eel"]),
        Cropped(X, Y),
        Subset(TensorDataset(X.repeat(2), torch.tensor([7] * 9 + CLASSES)), range(9, 18)),
        ConcatDataset([TensorDataset(X[:4], Y[:4]), Subset(TensorDataset(X, Y), [4, 5, 6, 7, 8])]),
        Samples(lambda x, label: [x, torch.tensor(label), torch.ones(3)]),
        Samples(lambda x, label: (x, np.int64(label))),
        Subset(Samples(pair), range(9)),
        Samples(lambda x, label: {"x": x, "labels": label}),
        Samples(lambda x, label: {"x": x, "y": torch.tensor(label)}),
    ],
)
def test_balanced_takes_the_lowest_of_each_class_of_any_samples_that_have_one(dataset):
    batch = hessian_batch(dataset, "train", Hessian(datapoints=6))
    x = batch[0] if isinstance(batch, tuple) else batch["x"]
    assert x.tolist() == LOWEST_TWO


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(torch.arange(9), torch.ones(9)),  # an integer input is no class
        TensorDataset(X, Y[:, None].float()),
        Samples(bare),
        Samples(lambda x, label: x),
        Samples(lambda x, label: (x, float(label))),
        Samples(lambda x, label: (x, "dog")),
        Samples(lambda x, label: (x, torch.ones(3, dtype=torch.long))),
        Samples(lambda x, label: {"x": x, "y": x}),
    ],
)
def test_samples_without_an_integer_class_are_refused(dataset):
    with pytest.raises(ConfigError, match=r"no `targets`.* sample 0 .*hessian\.subset=first"):
        hessian_batch(dataset, "train", Hessian(datapoints=6))


class Many(Dataset):
    """Samples too many to be read for their classes."""

    def __len__(self):
        return MOST_READ + 1

    def __getitem__(self, index):
        raise AssertionError("read a sample")


def test_large_datasets_are_not_read_for_their_classes():
    with pytest.raises(ConfigError, match=r"100,001 samples are too many .*hessian\.subset=first"):
        hessian_batch(Many(), "train", Hessian(datapoints=6))


def test_first_takes_any_samples_as_many_as_there_are():
    batch = hessian_batch(Samples(bare), "train", Hessian(datapoints=5, subset="first"))
    assert batch[0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match=r"hessian\.datapoints is 10, but .* only 9"):
        hessian_batch(Samples(bare), "train", Hessian(datapoints=10, subset="first"))


def test_samples_of_several_shapes_are_refused_in_one_sentence():
    ragged = [(torch.ones(2 + i % 2), i) for i in range(9)]
    with pytest.raises(ConfigError, match=r"samples do not make a batch: .*equal size.*[^.]\.$"):
        hessian_batch(ragged, "test", Hessian(datapoints=4, subset="first"))
