"""Networks that are functions of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter

from skerch.errors import SkerchError

Function = Callable[..., Any]  # of a dict of parameters, and of inputs


class FunctionalModel(Module):
    """A function (params, x) ↦ y, with its parameters by name, as a Module x ↦ y.

    A tensor of `params` becomes a parameter in its memory, and a `Parameter` stays the one that it
    is. Dots in a name part modules; the order is that of `params`.
    """

    def __init__(self, function: Function, params: Mapping[str, Tensor]):
        super().__init__()
        self._function, self._names = function, list(params)
        for name, tensor in params.items():
            *path, last = name.split(".")
            module: Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, Module())
                module = module.get_submodule(part)
            is_whole = not (tensor.is_floating_point() or tensor.is_complex())
            own = (
                tensor
                if isinstance(tensor, Parameter)
                else Parameter(tensor.detach(), not is_whole)
            )
            module.register_parameter(last, own)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        params = dict(self.named_parameters(remove_duplicate=False))
        return self._function(params, *args, **kwargs)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        known = dict(super().named_parameters(prefix, recurse, remove_duplicate))
        ordered = (f"{prefix}.{name}" if prefix else name for name in self._names)
        yield from ((name, known[name]) for name in ordered if name in known)


def as_module(model: Module | Function, params: Mapping[str, Tensor] | None) -> Module:
    """A Module as it is, and a function with its parameters as one; raises where one is missing."""
    if isinstance(model, Module):
        if params is not None:
            raise SkerchError(
                "A Module has its parameters, and params are those of a function; leave params "
                "out, and select parameters by param_filter."
            )
        original: Module = getattr(model, "_orig_mod", model)  # of what torch.compile returns
        return original
    if not isinstance(params, Mapping):
        raise SkerchError(
            "A model that is a function (params, x) needs params, a dict of tensors by name."
        )
    return FunctionalModel(model, params)
