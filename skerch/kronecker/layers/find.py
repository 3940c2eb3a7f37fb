"""The layers of a network, and why parameters are in none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch.nn import Module, Parameter

from skerch.kronecker.layers.base import Layer
from skerch.kronecker.layers.kinds import kind_of
from skerch.kronecker.layers.norm import NormLayer


@dataclass(frozen=True)
class Layers:
    """The layers of a network, and the parameters that are in none, with the reason."""

    covered: list[Layer]
    uncovered: dict[str, str]

    def partition(self, k: int) -> list[list[Layer]]:
        """k parts of the layers that cost about the same, each in the layers' order."""
        parts: list[list[int]] = [[] for _ in range(k)]
        costs = [0] * k
        for i in sorted(range(len(self.covered)), key=lambda i: -self.covered[i].cost):
            least = costs.index(min(costs))
            parts[least].append(i)
            costs[least] += self.covered[i].cost
        return [[self.covered[i] for i in sorted(part)] for part in parts]

    def without(self, reasons: Mapping[str, str]) -> Layers:
        """Layers of these names left out, their parameters uncovered for the reasons given."""
        left_out = {
            parameter: reasons[layer.name]
            for layer in self.covered
            if layer.name in reasons
            for parameter in layer.shapes
        }
        covered = [layer for layer in self.covered if layer.name not in reasons]
        return Layers(covered, self.uncovered | left_out)


@dataclass(frozen=True)
class _Use:
    """What a module does with its parameters; modules of one use are one layer."""

    kind: type[Layer]
    weight: str | None
    bias: str | None
    groups: int


def find_layers(
    model: Module, params: Mapping[str, Parameter], *, include_bias: bool = True
) -> Layers:
    """The layers of the given parameters, in the order of modules.

    A parameter that modules share is in a layer where all of them use it alike.
    """
    names = {id(p): name for name, p in params.items()}
    modules: dict[_Use, list[str]] = defaultdict(list)
    uses: dict[str, dict[_Use | str, str]] = {name: {} for name in params}  # why none, if it is str
    for path, module in model.named_modules():
        own = {a: names[id(p)] for a, p in module._parameters.items() if id(p) in names}
        kind = kind_of(module)
        use: _Use | str = kind if isinstance(kind, str) else _use(kind, module, own, include_bias)
        for attribute, name in own.items():
            of_layer = isinstance(use, str) or name in (use.weight, use.bias)
            why = f"it is the {attribute} of a {type(module).__name__}, which is left out"
            uses[name].setdefault(use if of_layer else why, path)
        if isinstance(use, _Use) and (use.weight or use.bias):
            modules[use].append(path)
    covered = []
    for use, paths in modules.items():
        weight, bias = (n if n and len(uses[n]) == 1 else None for n in (use.weight, use.bias))
        shapes = {n: tuple(params[n].shape) for n in (weight, bias) if n}
        if shapes:
            covered.append(use.kind(paths[0], weight, bias, shapes, tuple(paths), use.groups))
    found = {name for layer in covered for name in layer.shapes}
    return Layers(covered, {n: _reason(uses[n]) for n in params if n not in found})


def _use(kind: type[Layer], module: Module, own: Mapping[str, str], include_bias: bool) -> _Use:
    bias = own.get("bias") if include_bias or kind is NormLayer else None
    return _Use(kind, own.get("weight"), bias, getattr(module, "groups", 1))


def _reason(uses: Mapping[_Use | str, str]) -> str:
    """Why a parameter of these uses is in no layer."""
    if len(uses) == 1:
        return str(next(iter(uses)))
    return f"modules use it in differing ways ({', '.join(uses.values())})"
