"""What modules were given in a forward pass, and the gradients at what they returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import Module

from skerch.curvature.fisher import Numbered
from skerch.curvature.strategies.linear_map import quiet_vmap
from skerch.errors import ShapeError, SkerchError
from skerch.kronecker.layers import Layer


@dataclass(frozen=True)
class Call:
    """One call of a layer's module."""

    layer: Layer
    module: Module
    x: Tensor  # what it was given
    edge: GradientEdge  # of what it returned, whatever is done in place to that
    shape: torch.Size  # of what it returned


@dataclass
class Record:
    """The calls of all layers in a forward pass, in order.

    With `n` set, inputs (n * T, …) have n examples, too; otherwise dimension 0 has the examples.
    """

    mask: Tensor | None = None  # (n, T), of the positions that are not padding
    n: int | None = None
    calls: list[Call] = field(default_factory=list)
    batched: bool = True  # whether several scores go through one vectorised backward pass

    @property
    def layers(self) -> list[Layer]:
        """Those that were called."""
        return list({call.layer.name: call.layer for call in self.calls}.values())

    def rows(self, layer: Layer) -> Tensor:
        """a (n, T, groups, inputs) of all calls of a layer, which are positions beside each other.

        Those of indices are integers (n, T).
        """
        parts = [layer.rows(call.module, call.x) for call in self._of(layer)]
        return self._joined(layer, parts[:1] if layer.summed else parts, 0)

    def weights(self, layer: Layer, a: Tensor, masses: Tensor) -> Tensor:
        """Of positions of rows a, (n, T): equal parts of their example's mass, 0 for padding."""
        calls = self._of(layer)
        counted = torch.ones(a.shape[:2], dtype=torch.bool, device=a.device)
        if layer.indices:
            parts = [layer.counted(call.module, call.x) for call in calls]
            counted &= self._joined(layer, parts, 0)
        if self.mask is not None:
            mask = self.mask.to(a.device).repeat(1, len(calls))
            if mask.shape == counted.shape:
                counted &= mask
        return masses[:, None] * counted / counted.sum(1, keepdim=True).clamp(min=1)

    def slopes(self, z: Tensor, scores: Tensor) -> Iterator[tuple[Layer, Tensor]]:
        """Each layer that was called, with g (b, n, T, groups, outputs) of scores (b, *z.shape)."""
        gradients = self._gradients(z, scores)
        for layer in self.layers:
            parts = []
            for i, call in enumerate(self.calls):
                if call.layer.name == layer.name:
                    g, gradients[i] = gradients[i], None
                    if g is None:
                        g = scores.new_zeros(len(scores), *call.shape)
                    parts.append(layer.slopes(call.module, call.x, g))
            yield layer, self._joined(layer, parts, 1)

    def _gradients(self, z: Tensor, scores: Tensor) -> list[Tensor | None]:
        """(b, …) at what each call returned; None where z is no function of it."""
        edges = [call.edge for call in self.calls]
        options: Any = {"retain_graph": True, "allow_unused": True}
        if not edges:
            return []
        if self.batched and len(scores) > 1:
            try:
                with quiet_vmap():
                    found = torch.autograd.grad(z, edges, scores, is_grads_batched=True, **options)
                return list(found)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # an operation that cannot be vectorised
                self.batched = False
        each = zip(*(torch.autograd.grad(z, edges, r, **options) for r in scores), strict=True)
        return [None if parts[0] is None else torch.stack(parts) for parts in each]

    def _of(self, layer: Layer) -> list[Call]:
        return [call for call in self.calls if call.layer.name == layer.name]

    def _joined(self, layer: Layer, parts: Sequence[Tensor], dim: int) -> Tensor:
        """Of calls, as (…, n, T, …): examples lie along `dim`, and positions behind it."""
        parts = [self._by_example(layer, part, dim) for part in parts]
        joined = torch.cat(parts, dim + 1) if len(parts) > 1 else parts[0]
        return joined.sum(dim + 1, keepdim=True) if layer.summed and dim else joined

    def _by_example(self, layer: Layer, part: Tensor, dim: int) -> Tensor:
        sizes, n = part.shape, self.n or part.shape[dim]
        if sizes[dim] % n:
            raise ShapeError(
                f"The module {layer.name} is given {sizes[dim]} entries along dimension 0, and "
                f"there are {n} examples; leave its parameters out by param_filter."
            )
        part = part.reshape(*sizes[:dim], n, -1, *sizes[dim + 2 :]) if sizes[dim] != n else part
        return part[:, :1] if layer.summed and not dim else part


def position_mask(batch: Any) -> Tensor | None:
    """Which positions (n, T) of a batch are not padding, by its `attention_mask`; None for all.

    The batch is a mapping, or has one in a tuple or list.
    """
    if isinstance(batch, Mapping):
        mask = batch.get("attention_mask")
        return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
    if isinstance(batch, Numbered):
        return position_mask(batch.batch)
    parts = batch if isinstance(batch, tuple | list) else ()
    return next((m for part in parts if (m := position_mask(part)) is not None), None)


@contextmanager
def recording(
    model: Module, layers: Sequence[Layer], mask: Tensor | None = None
) -> Iterator[Record]:
    """Within, calls of the layers' modules are recorded where their results have a gradient.

    The backward pass must come after it: a checkpointed module is called a second time there.
    """
    record = Record(mask)

    def hook(layer: Layer) -> Any:
        def note(module: Module, args: Any, kwargs: Any, output: Tensor) -> None:
            if torch._C._functorch.is_functorch_wrapped_tensor(output):
                raise SkerchError(
                    f"The module {layer.name} is called within a transformation of torch.func, and "
                    "Kronecker factors are of plain calls; let forward_fn call the model once for "
                    "all examples of a batch (EmpiricalFisherOperator.of_loss does)."
                )
            if output.requires_grad:
                x = next(iter((*args, *kwargs.values()))).detach()
                record.calls.append(Call(layer, module, x, get_gradient_edge(output), output.shape))

        return note

    handles = [
        model.get_submodule(name).register_forward_hook(hook(layer), prepend=True, with_kwargs=True)
        for layer in layers
        for name in layer.modules
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
