"""State dicts of a training done elsewhere: read safely, and loaded into the problem's network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skerch.jobs.config.tensor_files import StateDictError, read

WRAPPER = re.compile(r"(model|net|network|module)?_?(state|state_dict|weights|params|parameters)?")
# What torch.compile, DataParallel and FSDP put between the parts of a name
INSERTED = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
NAMED = 3  # at most, of the names that differ


def load_into(model: nn.Module, path: Path) -> None:
    """Load a file's state dict into a network, all of it, by torch's strict rules.

    It may be wrapped (`state_dict`, `model_state_dict`, `model`, `net`, …). Its names may have a
    prefix in common that the network's have not, or the other way round, and parts that
    torch.compile, DataParallel and FSDP insert. Of tied tensors one is enough.

    Raises:
        StateDictError: it cannot be read or does not fit, or a parameter is not finite.
    """
    state, how = _find(path, read(path), model.state_dict())
    _share_tied(path, model, state)
    for name, parameter in model.named_parameters():
        found = state.get(name)
        if isinstance(found, Tensor) and _kind(found) != _kind(parameter):
            raise StateDictError(
                f"{path} holds {name} as {found.dtype}, where the problem's network has "
                f"{parameter.dtype}; save its values in such a type."
            )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        differences = _differences(state, model.state_dict()) or " ".join(str(error).split())[:300]
        raise StateDictError(
            f"{path}{how} does not fit the problem's network: {differences}. Build the network "
            "that was trained, or save a state dict of this one alone."
        ) from error
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise StateDictError(
                f"{path} holds values of {name} that are not finite; take an earlier checkpoint."
            )


def _find(path: Path, content: Any, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The state dict in a file that is nearest to the wanted names, and how it was read."""
    if not _is_named(content):
        raise StateDictError(f"{path} holds a {type(content).__name__}, not a state dict.")
    readings = [
        (len(state.keys() ^ wanted.keys()), entry, how, state)
        for entry, found in _entries(content)
        for how, state in _readings(found, wanted)
    ]
    if not readings:
        there = ", ".join(list(content)[: 3 * NAMED])
        raise StateDictError(
            f"{path} has no state dict as model, state_dict or the like; it has {len(content)} "
            f"entries: {there}. Save the one that is meant alone, with torch.save."
        )
    fewest, entry, how, state = min(readings, key=lambda reading: reading[0])
    alike = dict.fromkeys(reading[1] for reading in readings if reading[0] == fewest)
    if len(alike) > 1:
        raise StateDictError(
            f"{path} has several state dicts that fit alike: {', '.join(alike)}; save the one that "
            "is meant alone, with torch.save."
        )
    words = [f"as {entry}"] * bool(entry) + [how] * bool(how)
    return state, f" (read {', '.join(words)})" if words else ""


def _is_named(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(name, str) for name in content)


def _entries(content: Any, entry: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The state dicts that are wrapped in a file, or itself where none is."""
    if not _is_named(content):
        return
    wrapped = [
        found
        for name, value in content.items()
        if WRAPPER.fullmatch(name) and entry.count(".") < 2  # a file may hold itself
        for found in _entries(value, f"{entry}.{name}" if entry else name)
    ]
    yield from wrapped
    if not wrapped and any(isinstance(value, Tensor) for value in content.values()):
        yield entry, content


def _readings(
    found: Mapping[str, Any], wanted: Collection[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A state dict by the wanted names, with each prefix that it or they might have too much."""
    theirs, ours = _short(found), _short(wanted)
    choices = [("", {name: name for name in theirs})]
    for prefix in _prefixes(theirs):
        choices.append((f"without {prefix}", {n.removeprefix(prefix): n for n in theirs}))
    for prefix in _prefixes(ours):
        choices.append((f"with {prefix}", {prefix + n: n for n in theirs}))
    for how, names in choices:
        if len(names) == len(theirs):  # else two of them became one
            yield how, {ours.get(new, new): found[theirs[old]] for new, old in names.items()}


def _short(names: Collection[str]) -> dict[str, str]:
    """The names by themselves without inserted parts, as far as these tell them apart."""
    short = {".".join(p for p in n.split(".") if p not in INSERTED): n for n in names}
    return short if len(short) == len(names) else {name: name for name in names}


def _prefixes(names: Collection[str]) -> list[str]:
    """The dotted beginnings that half of the names or more have in common."""
    counts = Counter(name[: dot.end()] for name in names for dot in re.finditer(r"\.", name))
    return [prefix for prefix, count in counts.items() if 2 * count >= len(names)]


def _share_tied(path: Path, model: nn.Module, state: dict[str, Any]) -> None:
    """Give each name of a tied tensor its value, which must be one."""
    tensors = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name in tensors:
        if isinstance(state.get(name), Tensor):
            first.setdefault(id(tensors[name]), name)
    for name, tensor in tensors.items():
        other = first.get(id(tensor), name)
        if other != name and not torch.equal(state.setdefault(name, state[other]), state[other]):
            raise StateDictError(
                f"{path} holds {name} and {other} with different values, which the problem's "
                "network has tied; build the network that was trained."
            )


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _differences(state: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> str:
    """How many names and shapes differ, and the first of each."""
    shapes = {name: getattr(value, "shape", None) for name, value in state.items()}
    differing = {
        f"missing {{}} of {len(wanted)}": [name for name in wanted if name not in state],
        "not the network's {}": [name for name in state if name not in wanted],
        "of another shape {}": [
            f"{name} {tuple(shape)} instead of {tuple(wanted[name].shape)}"
            for name, shape in shapes.items()
            if name in wanted and shape is not None and shape != wanted[name].shape
        ],
    }
    return ", ".join(
        f"{what.format(len(names))} ({', '.join(names[:NAMED])}{', …' * (len(names) > NAMED)})"
        for what, names in differing.items()
        if names
    )
