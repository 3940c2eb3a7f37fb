"""Batches as trees: counted, split and moved, with the types that they have."""

from __future__ import annotations

from collections import UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from skerch.curvature import count_examples, split_batch, to_device
from skerch.errors import ShapeError, SkerchError


def test_split_batches_slice_every_tensor_of_the_tree():
    batch = {
        "x": torch.arange(5),
        "pair": [torch.arange(10).view(5, 2), "kept"],
        "t": torch.ones(()),
    }
    parts = split_batch(batch, 2)
    assert [count_examples(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])
    assert torch.equal(torch.cat([part["pair"][0] for part in parts]), batch["pair"][0])
    assert all(part["pair"][1] == "kept" and part["t"] == 1 for part in parts)


def test_to_device_converts_floating_tensors_only():
    x, (y, flag) = to_device((torch.ones(2), [torch.arange(2), True]), "cpu", torch.float64)
    assert (x.dtype, y.dtype, flag) == (torch.float64, torch.int64, True)


class Sample(UserDict):
    """A mapping whose entries are attributes, as in the libraries for language models."""

    def __getattr__(self, name):
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]


class Triple(tuple):
    """A tuple that is made of its three parts, and has an attribute."""

    def __new__(cls, first, second, third):
        made = super().__new__(cls, (first, second, third))
        made.note = "kept"
        return made


@dataclass(frozen=True)
class Frozen:
    """A dataclass that makes one of its fields."""

    x: torch.Tensor
    name: str = "kept"
    y: torch.Tensor = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "y", 2 * self.x)


@dataclass
class Slotted:
    __slots__ = ("x", "y")
    x: torch.Tensor
    y: torch.Tensor


class Attributes(dict):
    """A dict whose entries are attributes, by the shortest of the usual recipes."""

    def __init__(self, **entries):
        super().__init__(entries)
        self.__dict__ = self


class Both(tuple):
    """A tuple whose parts are attributes."""

    def __new__(cls, x, y):
        made = super().__new__(cls, (x, y))
        made.x, made.y = x, y
        return made


Named = namedtuple("Named", "x y")


class Growing(list):
    """A list that is made in another way than lists are."""

    def __init__(self, size, value):
        super().__init__(value + i for i in range(size))


class Graph:
    """What moves itself, in place."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        self.x = self.x.to(device)


OWN_TYPES = {
    "mapping": (Sample(x=torch.ones(4), y=torch.arange(4)), lambda b: [b.x, b["y"]]),
    "frozen mapping": (MappingProxyType({"x": torch.ones(4)}), lambda b: [b["x"]]),
    "attributes": (Attributes(x=torch.ones(4), y=torch.arange(4)), lambda b: [b.x, b["x"], b.y]),
    "tuple with attributes": (Both(torch.ones(4), torch.arange(4)), lambda b: [b.x, b[0], b.y]),
    "default": (defaultdict(list, x=torch.ones(4)), lambda b: [b["x"]]),
    "tuple": (Triple(torch.ones(4), "kept", torch.arange(4)), lambda b: [b[0], b[2]]),
    "named": (Named(torch.ones(4), torch.arange(4)), lambda b: [b.x, b.y]),
    "list": (Growing(3, torch.ones(4)), list),
    "frozen dataclass": (Frozen(torch.ones(4)), lambda b: [b.x, b.y]),
    "slotted dataclass": (Slotted(torch.ones(4), torch.arange(4)), lambda b: [b.x, b.y]),
    "nested": ({"pair": Named([Sample(x=torch.ones(4))], "s")}, lambda b: [b["pair"].x[0].x]),
}


@pytest.mark.parametrize("kind", OWN_TYPES)
def test_a_batch_keeps_its_type(kind):
    batch, tensors = OWN_TYPES[kind]
    moved, before = to_device(batch, "meta", torch.float64), tensors(batch)
    assert type(moved) is type(batch)
    assert moved is not batch
    assert getattr(moved, "note", None) == getattr(batch, "note", None)
    assert [t.device.type for t in tensors(moved)] == ["meta"] * len(before)
    assert {t.dtype for t in tensors(moved)} <= {torch.float64, torch.int64}
    assert {t.device.type for t in before} == {"cpu"}


@pytest.mark.parametrize("kind", [kind for kind in OWN_TYPES if kind != "nested"])
def test_the_parts_of_a_batch_keep_its_type(kind):
    batch, tensors = OWN_TYPES[kind]
    parts = split_batch(batch, 3)
    assert [type(part) for part in parts] == [type(batch)] * 2
    for whole, *pieces in zip(tensors(batch), *map(tensors, parts), strict=True):
        assert torch.equal(torch.cat(pieces), whole)


def test_what_moves_itself_is_moved_as_a_copy():
    graph = Graph(torch.ones(2))
    moved, (shape, y) = to_device((graph, (torch.Size([2]), torch.ones(2))), "meta")
    assert (moved.x.device.type, graph.x.device.type) == ("meta", "cpu")
    assert (shape, y.device.type) == (torch.Size([2]), "meta")
    with pytest.raises(ShapeError, match="batch_weight"):
        count_examples((graph, torch.ones(2)))


def test_packed_sequences_move_and_are_counted_by_sequence():
    packed = pack_sequence([torch.ones(n, 2) for n in (2, 4, 1)], enforce_sorted=False)
    batch = {"x": packed, "y": torch.arange(3)}
    assert count_examples(batch) == 3
    moved = to_device(batch, "cpu", torch.float64)["x"]
    assert (moved.data.dtype, moved.batch_sizes.dtype) == (torch.float64, torch.int64)
    assert nn.GRU(2, 3).double()(moved)[1].shape == (1, 3, 3)
    assert to_device(packed, "meta").batch_sizes.device.type == "cpu"
    with pytest.raises(ShapeError, match="packed sequence cannot be split"):
        split_batch(batch, 2)


def images(*sizes):
    return [torch.ones(3, size, size) for size in sizes]


@pytest.mark.parametrize(
    ("batch", "examples"),
    [
        ((images(8, 8, 6, 5), [torch.tensor(1)] * 4), 4),
        ((tuple(images(8, 8)), ({"boxes": torch.ones(5, 4)}, {"boxes": torch.ones(2, 4)})), 2),
        ({"image": images(8, 8, 8, 8), "label": torch.arange(4), "names": list("abcd")}, 4),
        ([[torch.ones(5, 2), torch.ones(5, 3)], torch.arange(5)], 5),
        ((torch.ones(6, 2), torch.tensor(0.5), list("ab"), None), 6),
    ],
)
def test_examples_are_counted_where_the_whole_batch_agrees(batch, examples):
    assert count_examples(batch) == examples


@pytest.mark.parametrize(
    "batch",
    [
        (torch.ones(7, 4, 3), torch.arange(4)),  # time first
        {"mask": torch.ones(9, 9), "tokens": torch.ones(4, 9)},
        (images(8, 8), torch.arange(4)),
        (images(8, 8), images(8, 8)),  # two images of three channels, or pairs of three examples
        (pack_sequence(images(3, 2)[:1]), torch.arange(4)),
        "text",
    ],
)
def test_examples_that_cannot_be_counted_are_refused(batch):
    for refused in (lambda: count_examples(batch), lambda: split_batch(batch, 2)):
        with pytest.raises(ShapeError, match="cannot be counted"):
            refused()


def test_lists_of_examples_are_split_with_the_tensors():
    batch = {"image": images(8, 8, 8, 6, 5), "y": torch.arange(5), "names": list("abcde")}
    parts = split_batch(batch, 2)
    assert [[len(value) for value in part.values()] for part in parts] == [
        [2] * 3,
        [2] * 3,
        [1] * 3,
    ]
    assert parts[1]["image"][1] is batch["image"][3]
    assert parts[2]["names"] == ["e"]


def test_an_ambiguous_list_is_not_split():
    batch = ([torch.ones(2, 4), torch.ones(2, 4)], torch.arange(2))
    assert count_examples(batch) == 2
    with pytest.raises(ShapeError, match="2 tensors of 2 entries"):
        split_batch(batch, 1)


def test_a_batch_that_cannot_be_copied_is_refused():
    class Guarded(dict):
        def __setitem__(self, key, value):
            raise PermissionError("not mine to change")

    with pytest.raises(SkerchError, match=r"Guarded cannot be copied \(not mine.* tuples, lists"):
        to_device(Guarded(x=torch.ones(1)), "cpu")


def test_batches_of_nothing_are_refused():
    with pytest.raises(SkerchError, match="batches of 0; the least size is 1"):
        split_batch(torch.ones(3), 0)
