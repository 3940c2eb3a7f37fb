"""The kinds of layers, and which of them a module is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn import Module

from skerch.kronecker.layers.base import Layer
from skerch.kronecker.layers.conv import ConvLayer
from skerch.kronecker.layers.embedding import EmbeddingLayer
from skerch.kronecker.layers.linear import LinearLayer
from skerch.kronecker.layers.norm import NormLayer
from skerch.kronecker.layers.transposed_linear import TransposedLinearLayer

MODULES: dict[type[Layer], tuple[type[Module], ...]] = {
    LinearLayer: (nn.Linear,),
    TransposedLinearLayer: (),  # transformers' Conv1D, without importing that
    ConvLayer: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    EmbeddingLayer: (nn.Embedding,),
    NormLayer: (
        *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    ),
}
KINDS: dict[str, type[Layer]] = {kind.kind: kind for kind in MODULES}
_OF_MODULE = {module: kind for kind, modules in MODULES.items() for module in modules}


def kind_of(module: Module) -> type[Layer] | str:
    """The kind of a module, or why it has none. A subclass has it with the same forward."""
    own: Any = type(module)
    for base in own.__mro__:
        kind = _OF_MODULE.get(base)
        if base.__name__ == "Conv1D" and base.__module__.startswith("transformers."):
            kind = TransposedLinearLayer
        if kind is not None:
            if own.forward is not base.forward or "forward" in vars(module):
                return f"its module has another forward than {base.__name__}"
            return kind.refused(module) or kind
    return f"no Kronecker factors are known of a {own.__name__}"


def layer_from_json(data: Mapping[str, Any]) -> Layer:
    """The layer of what `Layer.to_json` gives."""
    fields = {name: value for name, value in data.items() if name != "kind"}
    fields["shapes"] = {name: tuple(shape) for name, shape in fields["shapes"].items()}
    fields["modules"] = tuple(fields["modules"])
    return KINDS[data["kind"]](**fields)
