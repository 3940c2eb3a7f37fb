"""A layer: parameters of a module as matrices, and what their Kronecker factors are of.

The weight, with the bias as one more column, is W of shape (groups, outputs, inputs), and the
module computes W a at each position of an example. The gradient of an example's loss is then
G = Σ_t g_t a_tᵀ, for the rows a_t and the slopes g_t of the loss at the module's results.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module


@dataclass(frozen=True)
class Layer(ABC):
    """Parameters that one or more modules of one kind have; `n` examples, `T` positions of each."""

    name: str  # of the first module that has them
    weight: str | None  # names of parameters; None where the module has none, or it is left out
    bias: str | None
    shapes: Mapping[str, tuple[int, ...]]  # of these parameters
    modules: tuple[str, ...]  # that share them
    groups: int = 1

    kind: ClassVar[str]
    transposed: ClassVar[bool] = False  # the weight is of shape (inputs, outputs)
    indices: ClassVar[bool] = False  # rows are unit vectors, given by the index of their 1
    summed: ClassVar[bool] = False  # slopes are sums over positions, beside one row (1,)

    @classmethod
    def refused(cls, module: Module) -> str | None:
        """Why a module of this kind is not such a layer, if it is not."""
        return None

    @classmethod
    def refusal(cls, module: Any) -> str:
        """Why a module of this kind cannot be a layer; empty if it can."""
        return ""

    @classmethod
    def settings(cls, module: Any) -> dict[str, Any]:
        """What else of a module is a field of its layer."""
        return {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, outputs, inputs) of W; a bias is the last of the inputs."""
        inputs = int(self.bias is not None)
        if self.weight is None:
            outputs = self.shapes[self.bias or ""][0]
        else:
            sizes = self.shapes[self.weight]
            outputs, *others = sizes[::-1] if self.transposed else sizes
            inputs += math.prod(others)
        return self.groups, outputs // self.groups, inputs

    @property
    def parameters(self) -> list[str]:
        """The weight and the bias, as far as it has them."""
        return [name for name in (self.weight, self.bias) if name is not None]

    @property
    def cost(self) -> int:
        """Of the eigendecompositions of its factors, up to a constant."""
        groups, outputs, inputs = self.shape
        return groups * (outputs**3 + (0 if self.indices else inputs**3))

    @abstractmethod
    def rows(self, module: Module, x: Tensor) -> Tensor:
        """a_t of the module's input x, (n, T, groups, inputs), with 1 for a bias as the last.

        Those of indices are integers (n, T).
        """

    @abstractmethod
    def slopes(self, module: Module, x: Tensor, g: Tensor) -> Tensor:
        """g_t, (…, n, T, groups, outputs), of gradients (…, n, *shape) at the module's results."""

    def counted(self, module: Module, x: Tensor) -> Tensor:
        """Of indices: which positions (n, T) have a row that is not 0."""
        return torch.ones_like(self.rows(module, x), dtype=torch.bool)

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(…, groups, outputs, inputs) of tensors (…, *shape) in the place of the parameters."""
        parts = []
        for name in self.parameters:
            tensor = tensors[name].mT if self._is_transposed(name) else tensors[name]
            leading = tensor.shape[: tensor.ndim - len(self.shapes[name])]
            parts.append(tensor.reshape(*leading, *self.shape[:2], -1))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def tensors(self, matrix: Tensor) -> dict[str, Tensor]:
        """The inverse of `matrix`."""
        found = {}
        if self.bias is not None:
            found[self.bias] = matrix[..., -1].flatten(-2)
            matrix = matrix[..., :-1]
        if self.weight is not None:
            turned, sizes = self._is_transposed(self.weight), self.shapes[self.weight]
            W = matrix.reshape(*matrix.shape[:-3], *(sizes[::-1] if turned else sizes))
            found = {self.weight: W.mT if turned else W, **found}
        return found

    def to_json(self) -> dict[str, Any]:
        """What `layer_from_json` makes it of."""
        return {"kind": self.kind, **asdict(self)}

    def _is_transposed(self, name: str) -> bool:
        return self.transposed and name == self.weight

    def _augmented(self, a: Tensor) -> Tensor:
        """Rows of a weight as those of this layer's W."""
        if self.bias is None:
            return a
        one = a.new_ones(()).expand(*a.shape[:-1], 1)
        return one if self.weight is None else torch.cat([a, one], dim=-1)
