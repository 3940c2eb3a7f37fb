"""Which parameters of a network have Kronecker factors: layers, one file a kind."""

from __future__ import annotations

from skerch.kronecker.layers.base import Layer
from skerch.kronecker.layers.find import Layers, find_layers
from skerch.kronecker.layers.kinds import KINDS, layer_from_json

__all__ = ["KINDS", "Layer", "Layers", "find_layers", "layer_from_json"]
