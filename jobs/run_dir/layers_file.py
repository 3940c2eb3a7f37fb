"""Which parameters of a network have Kronecker factors, as layers.json says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayersFile:
    """The layers, the shapes of all parameters in the model's order, and why some are in none."""

    shapes: Mapping[str, Sequence[int]]
    layers: Sequence[Mapping[str, Any]]  # each as `Layer.to_json`
    uncovered: Mapping[str, str]
